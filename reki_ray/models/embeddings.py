"""Embedding layers that items, histories and users share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reki_ray.models.features import GAP_ROWS, PADDING, UNKNOWN, FeatureSpace, Field

_INITIAL_STD = 0.05


class AttributeEmbedding(nn.Module):
    """Mean-pooled embedding of every multi-valued attribute.

    Args:
        fields: Attributes and their vocabularies.
        size: Embedding size E.
    """

    nothing: Tensor

    def __init__(self, fields: Mapping[str, Field], size: int) -> None:
        super().__init__()
        # Lists, not a ModuleDict: attribute names are the user's and may hold dots.
        self.names = tuple(fields)
        self.size = size
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(field.rows, size, mode="mean", padding_idx=PADDING)
            for field in fields.values()
        )
        for bag in self.bags:
            assert isinstance(bag, nn.EmbeddingBag)
            _initialise(bag.weight)
        # Knows the device where there is no attribute.
        self.register_buffer("nothing", torch.zeros(0), persistent=False)

    def forward(self, rows: Mapping[str, Tensor], count: int) -> Tensor:
        """One vector a record and attribute; zeros where a record has no value.

        Args:
            rows: Embedding rows (N, width) by attribute.
            count: Number of records N, which `rows` does not tell where there is no attribute.

        Returns:
            (N, number of attributes, E).
        """
        if not self.names:
            return self.nothing.new_zeros(count, 0, self.size)
        return torch.stack(
            [bag(rows[name]) for name, bag in zip(self.names, self.bags, strict=True)], dim=1
        )


class ItemEmbedding(nn.Module):
    """Item vector = embedding of the id + sum of the mean-pooled attribute embeddings.

    The sum keeps an item at E numbers however many attributes it has, so that attention over
    a history costs the same; an item without a row of its own still gets its attributes.

    Args:
        features: Vocabularies.
        size: Embedding size E.
        id_dropout: Share of a batch's items that training shows without their id. It is what
            trains the row of unknown ids. Without it no training sample reaches that row, which
            stays zero: an unknown item is its attributes alone.
    """

    def __init__(self, features: FeatureSpace, size: int, id_dropout: float) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.ids = nn.Embedding(features.item_rows, size, padding_idx=PADDING)
        self.attributes = AttributeEmbedding(features.item_fields, size)
        _initialise(self.ids.weight, *([] if id_dropout else [UNKNOWN]))

    def drop(self, ids: Tensor) -> Tensor:
        """Rows (N,) of the item ids, some of them unknown in training."""
        if not self.training or not self.id_dropout:
            return ids
        dropped = torch.rand(ids.shape, device=ids.device) < self.id_dropout
        return torch.where(dropped & (ids != PADDING), UNKNOWN, ids)

    def forward(self, ids: Tensor, attributes: Mapping[str, Tensor]) -> Tensor:
        """Item vectors (N, E).

        Args:
            ids: Rows of the item ids (N,), as `drop` gives them.
            attributes: Rows (N, width) by attribute.
        """
        vectors: Tensor = self.ids(ids)
        of_attributes: Tensor = self.attributes(attributes, len(ids))  # (N, F, E)
        return vectors + of_attributes.sum(dim=1)


class RatingEmbedding(nn.Embedding):
    """Embedding of the rating of a past interaction, added to its item's vector.

    That of a missing rating starts as zero, and stays so where training misses none.

    Args:
        features: Vocabularies.
        size: Embedding size E.
    """

    def __init__(self, features: FeatureSpace, size: int) -> None:
        super().__init__(features.rating_rows, size, padding_idx=PADDING)
        _initialise(self.weight, UNKNOWN)


class GapEmbedding(nn.Embedding):
    """Embedding of how long before the latest interaction a past one was, added to its vector.

    Args:
        size: Embedding size E.
    """

    def __init__(self, size: int) -> None:
        super().__init__(GAP_ROWS, size, padding_idx=PADDING)
        _initialise(self.weight)


def _initialise(weight: Tensor, *zeros: int) -> None:
    """Draw all rows but padding and some others, which are zero."""
    nn.init.normal_(weight, std=_INITIAL_STD)
    with torch.no_grad():
        weight[[PADDING, *zeros]] = 0.0
