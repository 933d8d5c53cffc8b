"""Personalized re-ranking model (Pei et al., RecSys 2019, arXiv 1904.06813)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.rerankers.layers import AttentionBlock, CandidateEncoder
from reki_ray.models.rerankers.protocol import RerankerSizes, RerankInputs

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
        sizes: Sizes.
    """

    def __init__(self, sizes: RerankerSizes) -> None:
        super().__init__()
        width = sizes.reranker.hidden
        together = sizes.network.embedding + width
        self.places = nn.Embedding(sizes.list_size, together)
        nn.init.normal_(self.places.weight, std=_INITIAL_STD)
        self.input = nn.Linear(together, width)
        self.blocks = nn.ModuleList(AttentionBlock(sizes) for _ in range(sizes.reranker.layers))
        self.last = nn.Linear(width, 1, bias=False)
        self.encoder = CandidateEncoder(sizes)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """See `Reranker`."""
        personal = torch.relu(self.encoder(inputs))  # (B, K, D)
        place = (inputs.mask.cumsum(dim=1) - 1).clamp(0, self.places.num_embeddings - 1)
        x = self.input(torch.cat([inputs.candidates, personal], dim=-1) + self.places(place))
        for block in self.blocks:
            x = block(x, x, inputs.mask)
        logits: Tensor = self.last(x).squeeze(-1)
        return logits
