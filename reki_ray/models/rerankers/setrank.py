"""SetRank (Pang et al., SIGIR 2020, arXiv 1912.05891)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.rerankers.layers import AttentionBlock, CandidateEncoder
from reki_ray.models.rerankers.protocol import InputDims, RerankInputs


class InducedBlock(nn.Module):
    """Induced multi-head self-attention block (the paper's IMSAB).

        IMSAB(X) = MAB(X, H, H);   H = MAB(I, X, X)

    The candidates interact through a few learned inducing points I, so the cost grows linearly
    with the number of candidates, and longer lists than in training are handled alike.

    Example::

        block = InducedBlock(8, heads=2, feed_forward=16, inducing=3, dropout=0.2)
        assert block(torch.randn(4, 5, 8), torch.ones(4, 5, dtype=torch.bool)).shape == (4, 5, 8)
    """

    def __init__(
        self, width: int, heads: int, feed_forward: int, inducing: int, dropout: float
    ) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(inducing, width))
        nn.init.xavier_uniform_(self.points)
        self.gather = AttentionBlock(width, heads, feed_forward, dropout)
        self.spread = AttentionBlock(width, heads, feed_forward, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, D) of candidates (B, K, D), mask (B, K)."""
        points = self.points.expand(x.shape[0], -1, -1)  # (B, inducing, D)
        summary = self.gather(points, x, mask)
        everywhere = torch.ones_like(summary[:, :, 0], dtype=torch.bool)
        output: Tensor = self.spread(x, summary, everywhere)
        return output


class SetRank(nn.Module):
    """Induced blocks over the set of candidates, then a score of each.

    The candidates are a set: their order does not change their scores. As in the paper's main
    model there is no ordinal embedding of initial places, which would break that.

    The published x_k are the features of a document for a query; here they come from
    `CandidateEncoder`, with profile, history and knowledge.

    Args:
        inducing: Inducing points of a block.

    Example::

        reranker = SetRank(InputDims(embedding=8, user_fields=2, augmented=8), inducing=4)
        logits = reranker(inputs)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self,
        dims: InputDims,
        *,
        hidden: int = 64,
        heads: int = 2,
        layers: int = 2,
        feed_forward: int = 128,
        inducing: int = 8,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            InducedBlock(hidden, heads, feed_forward, inducing, dropout) for _ in range(layers)
        )
        self.last = nn.Linear(hidden, 1, bias=False)
        self.encoder = CandidateEncoder(dims, hidden, dropout)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K)."""
        x = self.encoder(inputs)  # (B, K, D)
        for block in self.blocks:
            x = block(x, inputs.mask)
        logits: Tensor = self.last(x).squeeze(-1)
        return logits
