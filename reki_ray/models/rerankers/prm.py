"""Personalized re-ranking model (Pei et al., RecSys 2019, arXiv 1904.06813)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.rerankers.layers import AttentionBlock, CandidateEncoder
from reki_ray.models.rerankers.protocol import InputDims, RerankInputs

_INITIAL_STD = 0.05


class PRM(nn.Module):
    """Encoder of the transformer over the list, with places and personalised vectors.

        e_k = W ([t_k, pv_k] + pe_k) + b                     (input layer)
        blocks of self-attention over e_1, ..., e_K          (encoding layer)
        logit_k = w . e_k                                    (output layer)

    These are the parts of the paper's section 4. pe_k belongs to the candidate's place in the
    initial order; candidates beyond the longest training list share its last place. The
    personalised vector pv_k of user and item is the last hidden layer of a click model that was
    trained before (personalized module); here it is that of `CandidateEncoder`, with profile,
    history and knowledge, and trains jointly.

    Args:
        list_size: Largest number of candidates of a training list.

    Example::

        reranker = PRM(InputDims(embedding=8, user_fields=2, augmented=8), list_size=5)
        logits = reranker(inputs)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self,
        dims: InputDims,
        list_size: int,
        *,
        hidden: int = 64,
        heads: int = 2,
        layers: int = 2,
        feed_forward: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = dims.embedding + hidden
        self.places = nn.Embedding(list_size, width)
        nn.init.normal_(self.places.weight, std=_INITIAL_STD)
        self.input = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            AttentionBlock(hidden, heads, feed_forward, dropout) for _ in range(layers)
        )
        self.last = nn.Linear(hidden, 1, bias=False)
        self.encoder = CandidateEncoder(dims, hidden, dropout)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K)."""
        personal = torch.relu(self.encoder(inputs))  # (B, K, D)
        place = (inputs.mask.cumsum(dim=1) - 1).clamp(0, self.places.num_embeddings - 1)
        x = self.input(torch.cat([inputs.candidates, personal], dim=-1) + self.places(place))
        for block in self.blocks:
            x = block(x, x, inputs.mask)
        logits: Tensor = self.last(x).squeeze(-1)
        return logits
