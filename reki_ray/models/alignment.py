"""A loss that aligns the shared experts with what the click model learns of items."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

TEMPERATURE: Final = 0.1
MOST_ITEMS: Final = 512
"""Items that are compared with each other, drawn from a batch: the cost grows with their square."""


class Alignment(nn.Module):
    """Contrastive loss between knowledge and id embeddings of the same items.

        L = - mean_i log softmax_j(cos(A z_i, e_j) / 0.1)[i]

    z is what the shared experts make of an item's knowledge, e the embedding of its id. Dedicated
    experts stay free, as in DaRec and PAD: only what both sides share is worth aligning. No
    gradient flows into e, so that clicks alone shape it.

    Args:
        output: Length q of z.
        embedding: Length E of e.
    """

    def __init__(self, output: int, embedding: int) -> None:
        super().__init__()
        self.projection = nn.Linear(output, embedding, bias=False)

    def forward(self, shared: Tensor, embeddings: Tensor) -> Tensor:
        """Loss, a scalar.

        Args:
            shared: z of N distinct items (N, q).
            embeddings: e of the same items (N, E).
        """
        z = nn.functional.normalize(self.projection(shared), dim=1)
        e = nn.functional.normalize(embeddings.detach(), dim=1)
        same = torch.arange(len(z), device=z.device)
        return nn.functional.cross_entropy(z @ e.T / TEMPERATURE, same)
