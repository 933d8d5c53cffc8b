"""SetRank (Pang et al., SIGIR 2020, arXiv 1912.05891)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.rerankers.layers import AttentionBlock, CandidateEncoder
from reki_ray.models.rerankers.protocol import RerankerSizes, RerankInputs


class InducedBlock(nn.Module):
    """Induced multi-head self-attention block (the paper's IMSAB).

        IMSAB(X) = MAB(X, H, H);   H = MAB(I, X, X)

    The candidates meet through few inducing points I, which are learnt, so the cost grows with
    the number of candidates and not with its square, and lists of lengths that training did not
    see are read in the same way.

    Args:
        sizes: Sizes.
    """

    def __init__(self, sizes: RerankerSizes) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(sizes.reranker.inducing, sizes.reranker.hidden))
        nn.init.xavier_uniform_(self.points)
        self.gather = AttentionBlock(sizes)
        self.spread = AttentionBlock(sizes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, D) of candidates (B, K, D), mask (B, K)."""
        points = self.points.expand(x.shape[0], -1, -1)  # (B, inducing, D)
        heard = self.gather(points, x, mask)
        everywhere = torch.ones_like(heard[:, :, 0], dtype=torch.bool)
        spread: Tensor = self.spread(x, heard, everywhere)
        return spread


class SetRank(nn.Module):
    """Induced blocks over the set of candidates, then a score of each.

    The candidates are a set: in another order they get the same scores. The paper's ordinal
    embedding of places in initial rankings is left out, as in the paper's main model: with it a
    candidate would carry its place along.

    The published x_k are the features of a document for a query; here they come from
    `CandidateEncoder`, with profile, history and knowledge.

    Args:
        sizes: Sizes.
    """

    def __init__(self, sizes: RerankerSizes) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InducedBlock(sizes) for _ in range(sizes.reranker.layers))
        self.last = nn.Linear(sizes.reranker.hidden, 1, bias=False)
        self.encoder = CandidateEncoder(sizes)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """See `Reranker`."""
        x = self.encoder(inputs)  # (B, K, D)
        for block in self.blocks:
            x = block(x, inputs.mask)
        logits: Tensor = self.last(x).squeeze(-1)
        return logits
