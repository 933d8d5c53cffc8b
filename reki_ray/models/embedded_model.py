"""What every network over users, items and knowledge begins with: embeddings and HEIN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reki_ray.config import GateConfig, HeinConfig, NetworkConfig, Section
from reki_ray.models.adaptors import ADAPTORS
from reki_ray.models.embedding import AttributeEmbedding, ItemEmbedding, RatingEmbedding
from reki_ray.models.fields import FIRST_OWN_ROW, FeatureSpace
from reki_ray.models.hein import Adaptor
from reki_ray.models.representation_scaling import RepresentationScaling

_ROUND_ROWS = 256
"""HEIN's rows in bfloat16 are rounded up to a multiple of this."""


class Architecture(Section):
    """What, besides the vocabularies, determines the network's parameters.

    `representation` is the length d of r; 0 builds the network without knowledge.
    """

    backbone: str
    network: NetworkConfig
    hein: HeinConfig
    gate: GateConfig
    representation: int
    id_dropout: float


@dataclass(frozen=True)
class Items:
    """Item vectors, each distinct one once.

    Args:
        vectors: (R, E); row 0 is padding.
        seen: Training samples of their ids (R,); 0 where training never saw the id.
    """

    vectors: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Knowledge:
    """Representations of one side for B samples, each distinct one once.

    Members of a cluster share one, so K is far below B and HEIN costs little.

    Args:
        vectors: Unit representations (K, d).
        index: The sample's, among K, (B,).
    """

    vectors: Tensor
    index: Tensor


class EmbeddedModel(nn.Module):
    """Item, rating, profile and augmented vectors, for a network that a subclass puts on top.

    Representations arrive with length 1 and are scaled before HEIN, see `RepresentationScaling`.

    With a gate, h_i counts half / (half + n) for an item of n training samples, and h_u the same
    for n past interactions: knowledge carries what the model does not know by itself, and leaves
    alone what it knows better. Id dropout shows known items as unknown ones, with n = 0, which
    trains the network for that case.

    Args:
        architecture: Kind and sizes of the layers.
        features: Vocabularies.
        network: Makes the network on top. It is called before HEIN is built, so that with one
            seed it starts as it does without knowledge.
    """

    seen: Tensor

    def __init__(
        self,
        architecture: Architecture,
        features: FeatureSpace,
        network: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        size = architecture.network.embedding
        self.items = ItemEmbedding(features, size, architecture.id_dropout)
        self.ratings = RatingEmbedding(features, size)
        self.profile = AttributeEmbedding(features.user_fields, size)
        self.backbone = network()
        self.hein: Adaptor | None = None
        if architecture.representation:
            d, hein = architecture.representation, architecture.hein
            self.hein = ADAPTORS[hein.kind](d, hein)
            self.user_scaling = RepresentationScaling(d, hein.scaling)
            self.item_scaling = RepresentationScaling(d, hein.scaling)
        self.gate = architecture.gate
        self.reduced = False
        """Whether HEIN multiplies in bfloat16 in training. The rest of the network is no product of
        large matrices and gains nothing from it."""
        counts = [0] * FIRST_OWN_ROW + list(features.item_counts)
        self.register_buffer("seen", torch.tensor(counts, dtype=torch.float32), persistent=False)

    def augment_users(self, r: Tensor) -> Tensor:
        """Augmented vectors h_u (N, q) of unit representations r_u (N, d)."""
        return self._augment(self._require_hein().users, self.user_scaling(r))

    def augment_items(self, r: Tensor) -> Tensor:
        """Augmented vectors h_i (N, q) of unit representations r_i (N, d)."""
        return self._augment(self._require_hein().items, self.item_scaling(r))

    def embed_items(self, ids: Tensor, attributes: Mapping[str, Tensor]) -> Items:
        """Vectors of R items.

        Args:
            ids: Rows of the item ids (R,).
            attributes: Rows (R, width) by attribute.
        """
        shown = self.items.drop(ids)
        return Items(self.items(shown, attributes), self.seen[shown])

    def embed_history(self, items: Items, history: Tensor, ratings: Tensor) -> Tensor:
        """Vectors (B, L, E) of past interactions, zeros at padding.

        Args:
            items: R distinct items.
            history: Past items, index among R, 0 at padding, (B, L).
            ratings: Rows of their ratings (B, L).
        """
        shape = (*history.shape, items.vectors.shape[1])
        rows = items.vectors.index_select(0, history.reshape(-1)).view(shape)
        past: Tensor = rows + self.ratings(ratings)  # row 0 of both embeddings is zero
        return past

    def user_gate(self, mask: Tensor) -> Tensor:
        """How much h_u counts (B,), by the real interactions of a history, mask (B, L)."""
        return _gate(self.gate.users, mask.sum(dim=1).to(self.seen.dtype))

    def item_gate(self, seen: Tensor) -> Tensor:
        """How much h_i counts, by the training samples of an item, both of any shape."""
        return _gate(self.gate.items, seen)

    def _augment(self, side: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
        if not (self.reduced and self.training):
            return side(r)
        # Cast once for all experts. The number of distinct representations differs from batch to
        # batch, and each new shape costs a new kernel, which is made while the network waits.
        rows = len(r) + -len(r) % _ROUND_ROWS
        padded = r.new_zeros(rows, r.shape[1], dtype=torch.bfloat16)
        padded[: len(r)] = r
        with torch.autocast(r.device.type, torch.bfloat16):
            return side(padded)[: len(r)].float()

    def _require_hein(self) -> Adaptor:
        if self.hein is None:
            raise ValueError("this model has no knowledge side")
        return self.hein


def _gate(half: float | None, n: Tensor) -> Tensor:
    return torch.ones_like(n) if half is None else half / (half + n)
