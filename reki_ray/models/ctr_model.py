"""Backbone and HEIN as one network that trains jointly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reki_ray.config import GateConfig, HeinConfig, NetworkConfig, Section
from reki_ray.models.adaptors import ADAPTORS
from reki_ray.models.backbones import BackboneInputs, Output, build_backbone
from reki_ray.models.embedding import AttributeEmbedding, ItemEmbedding, RatingEmbedding
from reki_ray.models.fields import FIRST_OWN_ROW, PADDING, FeatureSpace
from reki_ray.models.hein import Adaptor
from reki_ray.models.representation_scaling import RepresentationScaling


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


@dataclass(frozen=True)
class Batch:
    """B samples over R distinct items and U distinct users.

    Everything that depends on an id alone is computed once a batch, not once a sample.

    Args:
        item_ids: Rows of the item ids (R,); entry 0 is padding.
        item_attributes: Rows (R, width) by attribute.
        targets: Item to be scored, index among R, (B,).
        history: Past items, index among R, 0 at padding, (B, L).
        history_ratings: Rows of their ratings (B, L).
        user_attributes: Rows (U, width) by attribute.
        distinct_users: Number U of distinct users.
        users: Index among U, (B,).
        user_knowledge: Representations r_u; None without knowledge.
        item_knowledge: Representations r_i of the items to be scored; None without knowledge.
    """

    item_ids: Tensor
    item_attributes: Mapping[str, Tensor]
    targets: Tensor
    history: Tensor
    history_ratings: Tensor
    user_attributes: Mapping[str, Tensor]
    distinct_users: int
    users: Tensor
    user_knowledge: Knowledge | None
    item_knowledge: Knowledge | None


class CTRModel(nn.Module):
    """Click probability of (user, history, item), with h_u and h_i as extra feature fields.

    Representations arrive with length 1 and are scaled before HEIN, see `RepresentationScaling`.

    With a gate, h_i counts half / (half + n) for an item of n training samples, and h_u the same
    for n past interactions: knowledge carries what the model does not know by itself, and leaves
    alone what it knows better. Id dropout shows known items as unknown ones, with n = 0, which
    trains the network for that case.

    Args:
        architecture: Kind and sizes of the layers.
        features: Vocabularies.
    """

    seen: Tensor

    def __init__(self, architecture: Architecture, features: FeatureSpace) -> None:
        super().__init__()
        size = architecture.network.embedding
        knows = architecture.representation > 0
        self.items = ItemEmbedding(features, size, architecture.id_dropout)
        self.ratings = RatingEmbedding(features, size)
        self.profile = AttributeEmbedding(features.user_fields, size)
        self.backbone = build_backbone(
            architecture.backbone,
            architecture.network,
            user_fields=len(features.user_fields),
            augmented=architecture.hein.output if knows else 0,
        )
        self.hein: Adaptor | None = None
        if knows:
            d, hein = architecture.representation, architecture.hein
            self.hein = ADAPTORS[hein.kind](d, hein)
            self.user_scaling = RepresentationScaling(d, hein.scaling)
            self.item_scaling = RepresentationScaling(d, hein.scaling)
        self.gate = architecture.gate
        counts = [0] * FIRST_OWN_ROW + list(features.item_counts)
        self.register_buffer("seen", torch.tensor(counts, dtype=torch.float32), persistent=False)

    def augment_users(self, r: Tensor) -> Tensor:
        """Augmented vectors h_u (N, q) of unit representations r_u (N, d)."""
        return self._require_hein().users(self.user_scaling(r))

    def augment_items(self, r: Tensor) -> Tensor:
        """Augmented vectors h_i (N, q) of unit representations r_i (N, d)."""
        return self._require_hein().items(self.item_scaling(r))

    def embed_items(self, ids: Tensor, attributes: Mapping[str, Tensor]) -> Items:
        """Vectors of R items.

        Args:
            ids: Rows of the item ids (R,).
            attributes: Rows (R, width) by attribute.
        """
        shown = self.items.drop(ids)
        return Items(self.items(shown, attributes), self.seen[shown])

    def forward(self, batch: Batch) -> Output:
        """Logits (B,) of a batch, and the loss that the backbone adds in training."""
        augmented = None
        if self.hein is not None:
            if batch.user_knowledge is None or batch.item_knowledge is None:
                raise ValueError("a model with knowledge needs representations of both sides")
            h_users = self.augment_users(batch.user_knowledge.vectors)  # (K_u, q)
            h_items = self.augment_items(batch.item_knowledge.vectors)  # (K_i, q)
            augmented = torch.stack(
                [
                    h_users.index_select(0, batch.user_knowledge.index),
                    h_items.index_select(0, batch.item_knowledge.index),
                ],
                dim=1,
            )
        profile = self.profile(batch.user_attributes, batch.distinct_users)  # (U, F, E)
        return self.output(
            items=self.embed_items(batch.item_ids, batch.item_attributes),
            targets=batch.targets,
            history=batch.history,
            history_ratings=batch.history_ratings,
            profile=profile.index_select(0, batch.users),
            augmented=augmented,
        )

    def output(
        self,
        *,
        items: Items,
        targets: Tensor,
        history: Tensor,
        history_ratings: Tensor,
        profile: Tensor,
        augmented: Tensor | None,
    ) -> Output:
        """The same from item vectors and augmented vectors that are already computed.

        Args:
            items: R distinct items.
            targets: Items to be scored, index among R, (B,).
            history: Past items, index among R, 0 at padding, (B, L).
            history_ratings: Rows of their ratings (B, L).
            profile: Profile fields (B, F, E).
            augmented: h_u and h_i (B, 2, q); None without knowledge.
        """
        shape = (*history.shape, items.vectors.shape[1])
        mask = history != PADDING
        past = items.vectors.index_select(0, history.reshape(-1)).view(shape) + self.ratings(
            history_ratings
        )
        inputs = BackboneInputs(
            users=profile,
            target=items.vectors.index_select(0, targets),
            history=past,  # zeros at padding: row 0 of both embeddings is zero
            mask=mask,
            augmented=self._gated(augmented, mask, items.seen, targets),
        )
        output: Output = self.backbone(inputs)
        return output

    def _gated(
        self, augmented: Tensor | None, mask: Tensor, seen: Tensor, targets: Tensor
    ) -> Tensor | None:
        """h_u and h_i (B, 2, q), each by how little the model knows of its id."""
        if augmented is None or (self.gate.users is None and self.gate.items is None):
            return augmented
        known = (mask.sum(dim=1).to(augmented.dtype), seen.index_select(0, targets))
        halves = (self.gate.users, self.gate.items)
        gates = [
            torch.ones_like(n) if half is None else half / (half + n)
            for n, half in zip(known, halves, strict=True)
        ]
        return augmented * torch.stack(gates, dim=1).unsqueeze(-1)

    def _require_hein(self) -> Adaptor:
        if self.hein is None:
            raise ValueError("this model has no knowledge side")
        return self.hein
