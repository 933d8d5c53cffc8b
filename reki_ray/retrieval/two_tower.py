"""Two towers that put users near the items that they like next.

An item's vector and a user's, both of length 1:

    v_i = n(e_i + z(x_i) C + c)
    u   = n(mean(v_j) W + w),    j among the latest items that the user liked

e_i is learned for the item's id, x_i is what the served model knows of the item: its item vector
and, where there is one, its augmented vector h_i. An item that training never saw has no e_i and
lies where its x_i puts it.

Trained by the softmax over the items of a batch with the logQ correction (Yi et al., "Sampling-
bias-corrected neural modeling for large corpus item recommendations", RecSys 2019):

    loss = -log softmax_j(u . v_j / T - log Q_j)    at the item of the sample itself

with Q_j the share of item j among the positive samples, and T learned.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_INITIAL_STD: Final = 0.05
_INITIAL_SCALE: Final = math.log(15.0)
_LEAST_DEVIATION: Final = 1e-4


class TwoTower(nn.Module):
    """Vectors (., D) of users and I items.

    Args:
        content: Length of x_i.
        id_dropout: Share of items shown without e_i in training.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, items: int, content: int, dimension: int, id_dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(content))
        self.register_buffer("deviation", torch.ones(content))
        # Sparse gradients: a step costs what its items cost, however large the catalogue is.
        self.ids = nn.Embedding(items, dimension, sparse=True)
        self.content = nn.Linear(content, dimension)
        self.users = nn.Linear(dimension, dimension)
        self.scale = nn.Parameter(torch.tensor(_INITIAL_SCALE))
        self._id_dropout = id_dropout
        nn.init.normal_(self.ids.weight, std=_INITIAL_STD)
        nn.init.eye_(self.users.weight)
        nn.init.zeros_(self.users.bias)

    def standardise(self, content: Tensor) -> None:
        """Take mean and deviation of x_i from all items (I, X)."""
        self.mean = content.mean(dim=0)
        self.deviation = content.std(dim=0, unbiased=False).clamp(min=_LEAST_DEVIATION)

    def item_vectors(self, rows: Tensor, content: Tensor) -> Tensor:
        """v_i (R, D).

        Args:
            rows: Distinct items (R,).
            content: Their x_i (R, X).
        """
        own = self.ids(rows)
        if self.training and self._id_dropout:
            own = own * (torch.rand(len(rows), 1) >= self._id_dropout)
        return functional.normalize(own + self._placed(content), dim=1)

    def new_item_vectors(self, content: Tensor) -> Tensor:
        """v_i (R, D) of items that training never saw, of their x_i (R, X)."""
        return functional.normalize(self._placed(content), dim=1)

    def user_vectors(self, vectors: Tensor, liked: Tensor, there: Tensor) -> Tensor:
        """u (B, D).

        Args:
            vectors: v_i of R items (R, D).
            liked: Liked items, places among R (B, L); any at padding.
            there: 1 at items, 0 at padding (B, L).
        """
        shape = (*liked.shape, vectors.shape[1])
        found = vectors.index_select(0, liked.reshape(-1)).view(shape)  # (B, L, D)
        total = (there.unsqueeze(1) @ found).squeeze(1)
        mean = total / there.sum(dim=1, keepdim=True).clamp(min=1)
        return functional.normalize(self.users(mean), dim=1)

    def loss(self, users: Tensor, items: Tensor, targets: Tensor, log_q: Tensor) -> Tensor:
        """Mean loss of B samples, nats.

        Args:
            users: u (B, D).
            items: v_i of the samples' items (B, D).
            targets: These items (B,); a sample's own item is not a negative.
            log_q: Logarithm of their share among the positive samples (B,).
        """
        logits = users @ items.T * torch.exp(self.scale) - log_q
        same = targets[:, None] == targets[None]
        same.fill_diagonal_(fill_value=False)
        own = torch.arange(len(targets))
        return functional.cross_entropy(logits.masked_fill(same, -torch.inf), own)

    def _placed(self, content: Tensor) -> Tensor:
        placed: Tensor = self.content((content - self.mean) / self.deviation)
        return placed
