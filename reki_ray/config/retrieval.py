"""Section of the retrieval of candidates for recommendations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reki_ray.config.base import Section


class RetrievalConfig(Section):
    """How candidates of recommendations are found, and what is learned for it at publication."""

    kind: Literal["two_tower", "popular"] = "two_tower"
    """two_tower: items near the user, by vectors that are learned at publication; popular: the most
    popular ones for everybody."""
    dimension: int = Field(64, ge=2, description="Length of the vectors of users and items.")
    history: int = Field(10, ge=1)
    """Latest liked interactions that a user's vector is made of, among those that publish.history
    keeps."""
    epochs: int = Field(10, ge=1, description="Passes over the positive training samples.")
    max_samples: int = Field(3_000_000, ge=1)
    """Most samples that are shown in all epochs together; some 50,000 take a second on one core."""
    batch_size: int = Field(1024, ge=2)
    """Samples per step; each has the items of the others as negatives."""
    learning_rate: float = Field(1e-2, gt=0, description="Peak rate of Adam.")
    id_dropout: float = Field(0.05, ge=0, lt=1)
    """Share of a step's items shown without what was learned of their id, as an item is that comes
    later."""
    exact_below: int = Field(100_000, ge=0)
    """Catalogues below this size are searched whole, which is exact and takes a millisecond; larger
    ones get an approximate index (HNSW)."""
