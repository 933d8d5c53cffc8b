"""A loss that aligns the shared experts with what the click model learns of items."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

TEMPERATURE: Final = 0.1
MOST_ITEMS: Final = 512
"""Most items of a batch that are compared with each other: the cost grows with their square."""


class Alignment(nn.Module):
    """Contrastive loss between knowledge and id embeddings of the same items.

        L = - mean_i log softmax_j(cos(A z_i, e_j) / 0.1)[i]

    z is the output of the shared experts for an item, e the embedding of its id. Dedicated experts
    are not aligned, as in DaRec and PAD. No gradient flows into e, so that clicks alone shape it.

    Args:
        output: Length q of z.
        embedding: Length E of e.

    Example::

        alignment = Alignment(output=8, embedding=16)
        loss = alignment(torch.randn(5, 8), torch.randn(5, 16))
    """

    def __init__(self, output: int, embedding: int) -> None:
        super().__init__()
        self.projection = nn.Linear(output, embedding, bias=False)

    def forward(self, shared: Tensor, embeddings: Tensor) -> Tensor:
        """Loss, a scalar, of z (N, q) and e (N, E) of N distinct items."""
        z = nn.functional.normalize(self.projection(shared), dim=1)
        e = nn.functional.normalize(embeddings.detach(), dim=1)
        same = torch.arange(len(z), device=z.device)
        return nn.functional.cross_entropy(z @ e.T / TEMPERATURE, same)
