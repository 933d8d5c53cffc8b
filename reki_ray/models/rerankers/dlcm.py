"""Deep listwise context model (Ai et al., SIGIR 2018, arXiv 1804.05936)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.rerankers.layers import CandidateEncoder, MaskedReader
from reki_ray.models.rerankers.protocol import InputDims, RerankInputs


class DLCM(nn.Module):
    """GRU from the last candidate to the first; its final state is the context of the list.

        z_k = elu(W_2 elu(W_1 x_k + b_1) + b_2);   x_k' = [x_k, z_k]      (input representation)
        o_k = GRU over x_K', ..., x_1';   s = o_1                         (encoding the list)
        logit_k = V . (o_k tanh(W s + b))                                 (re-ranking with it)

    These are the parts of the paper's section 4. The first candidates are read last, so that they
    weigh most in s. tanh(W s + b) is a matrix with a column per comparison, V weighs them.

    The published x_k are the features of a document for a query; here they come from
    `CandidateEncoder`, with profile, history and knowledge.

    Args:
        heads: Comparisons of a candidate with its list.

    Example::

        reranker = DLCM(InputDims(embedding=8, user_fields=2, augmented=8), hidden=16)
        logits = reranker(inputs)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self, dims: InputDims, *, hidden: int = 64, heads: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.abstraction = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU()
        )
        self.reader = MaskedReader(nn.GRU(2 * hidden, hidden, batch_first=True), backwards=True)
        self.context = nn.Linear(hidden, hidden * heads)
        self.last = nn.Linear(heads, 1, bias=False)
        self.encoder = CandidateEncoder(dims, hidden, dropout)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K)."""
        x = self.encoder(inputs)  # (B, K, D)
        outputs = self.reader(torch.cat([x, self.abstraction(x)], dim=-1), inputs.mask)
        lists, _, width = x.shape
        first = inputs.mask.int().argmax(dim=1)[:, None, None].expand(-1, 1, width)
        state = outputs.gather(1, first).squeeze(1)  # (B, D)
        context = torch.tanh(self.context(state)).view(lists, width, -1)  # (B, D, comparisons)
        logits: Tensor = self.last(outputs @ context).squeeze(-1)
        return logits
