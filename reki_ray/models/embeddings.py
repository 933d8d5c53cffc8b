"""Embedding layers that items, histories and users share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reki_ray.models.features import PADDING, UNKNOWN

_INITIAL_STD = 0.05


class AttributeEmbedding(nn.Module):
    """Mean-pooled embedding of every multi-valued attribute.

    Args:
        rows: Rows of each attribute's table, with padding and unknown.

    Example::

        embedding = AttributeEmbedding({"genre": 20, "year": 50}, size=8)
        genre, year = torch.tensor([[2, 7, 0], [3, 0, 0]]), torch.tensor([[5], [0]])
        assert embedding({"genre": genre, "year": year}, count=2).shape == (2, 2, 8)
    """

    empty: Tensor

    def __init__(self, rows: Mapping[str, int], size: int) -> None:
        super().__init__()
        # Lists, not a ModuleDict: attribute names are the user's and may contain dots.
        self.names = tuple(rows)
        self.size = size
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(count, size, mode="mean", padding_idx=PADDING)
            for count in rows.values()
        )
        for bag in self.bags:
            assert isinstance(bag, nn.EmbeddingBag)
            _initialise(bag.weight)
        # Holds the device of a model without attributes.
        self.register_buffer("empty", torch.zeros(0), persistent=False)

    def forward(self, rows: Mapping[str, Tensor], count: int) -> Tensor:
        """Vectors (N, attributes, E); zeros where a record has no value.

        Args:
            rows: Embedding rows (N, width) by attribute.
            count: Number of records N, which an empty `rows` does not show.
        """
        if not self.names:
            return self.empty.new_zeros(count, 0, self.size)
        return torch.stack(
            [bag(rows[name]) for name, bag in zip(self.names, self.bags, strict=True)], dim=1
        )


class ItemEmbedding(nn.Module):
    """Item vector = embedding of the id + sum of the mean-pooled attribute embeddings.

    The sum keeps an item at E numbers however many attributes it has, so that attention over
    a history costs the same; an item without a row of its own still gets its attributes.

    Args:
        id_dropout: Share of a batch's items that training shows without their id, which trains
            the row of unknown ids. At 0 that row stays zero: an unknown item is its attributes.

    Example::

        items = ItemEmbedding(100, {"genre": 20}, size=8, id_dropout=0.05)
        vectors = items(items.drop(torch.tensor([2, 3])), {"genre": torch.tensor([[2], [7]])})
        assert vectors.shape == (2, 8)
    """

    def __init__(
        self, rows: int, attribute_rows: Mapping[str, int], size: int, id_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.ids = nn.Embedding(rows, size, padding_idx=PADDING)
        self.attributes = AttributeEmbedding(attribute_rows, size)
        _initialise(self.ids.weight, *([] if id_dropout else [UNKNOWN]))

    def drop(self, ids: Tensor) -> Tensor:
        """Replace some of the item ids (N,) by the unknown id in training."""
        if not self.training or not self.id_dropout:
            return ids
        dropped = torch.rand(ids.shape, device=ids.device) < self.id_dropout
        return torch.where(dropped & (ids != PADDING), UNKNOWN, ids)

    def forward(self, ids: Tensor, attributes: Mapping[str, Tensor]) -> Tensor:
        """Item vectors (N, E) of ids (N,), as `drop` returns them, and attributes (N, width)."""
        vectors: Tensor = self.ids(ids)
        of_attributes: Tensor = self.attributes(attributes, len(ids))  # (N, F, E)
        return vectors + of_attributes.sum(dim=1)


def row_embedding(rows: int, size: int, *zeros: int) -> nn.Embedding:
    """Embedding of ratings or time gaps (..., E); padding stays zero, and `zeros` start at zero."""
    embedding = nn.Embedding(rows, size, padding_idx=PADDING)
    _initialise(embedding.weight, *zeros)
    return embedding


def _initialise(weight: Tensor, *zeros: int) -> None:
    """Draw all rows but padding and `zeros`, which are zero."""
    nn.init.normal_(weight, std=_INITIAL_STD)
    with torch.no_grad():
        weight[[PADDING, *zeros]] = 0.0
