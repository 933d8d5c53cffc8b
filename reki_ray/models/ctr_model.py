"""Backbone and HEIN as one network that trains jointly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reki_ray.config import DinConfig, HeinConfig, Section
from reki_ray.models.backbones import BackboneInputs, build_backbone
from reki_ray.models.embedding import AttributeEmbedding, ItemEmbedding, RatingEmbedding
from reki_ray.models.fields import PADDING, FeatureSpace
from reki_ray.models.hein import HEIN


class Architecture(Section):
    """What, besides the vocabularies, determines the network's parameters.

    `representation` is the length d of r; 0 builds the network without knowledge.
    """

    backbone: str
    din: DinConfig
    hein: HeinConfig
    representation: int
    id_dropout: float


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

    Representations arrive with length 1, so that a component of a d-dimensional one is about
    1 / sqrt(d); they are scaled by sqrt(d) before HEIN, which gives its layers inputs of
    unit size whatever the encoder.

    Args:
        architecture: Kind and sizes of the layers.
        features: Vocabularies.
    """

    def __init__(self, architecture: Architecture, features: FeatureSpace) -> None:
        super().__init__()
        size = architecture.din.embedding
        knows = architecture.representation > 0
        self.items = ItemEmbedding(features, size, architecture.id_dropout)
        self.ratings = RatingEmbedding(features, size)
        self.profile = AttributeEmbedding(features.user_fields, size)
        self.backbone = build_backbone(
            architecture.backbone,
            architecture.din,
            user_fields=len(features.user_fields),
            augmented=architecture.hein.output if knows else 0,
        )
        self.hein = HEIN(architecture.representation, architecture.hein) if knows else None

    def augment_users(self, r: Tensor) -> Tensor:
        """Augmented vectors h_u (N, q) of unit representations r_u (N, d)."""
        return self._require_hein().users(r * math.sqrt(r.shape[1]))

    def augment_items(self, r: Tensor) -> Tensor:
        """Augmented vectors h_i (N, q) of unit representations r_i (N, d)."""
        return self._require_hein().items(r * math.sqrt(r.shape[1]))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B,)."""
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
        return self.logits(
            items=self.items(batch.item_ids, batch.item_attributes),
            targets=batch.targets,
            history=batch.history,
            history_ratings=batch.history_ratings,
            profile=profile.index_select(0, batch.users),
            augmented=augmented,
        )

    def logits(
        self,
        *,
        items: Tensor,
        targets: Tensor,
        history: Tensor,
        history_ratings: Tensor,
        profile: Tensor,
        augmented: Tensor | None,
    ) -> Tensor:
        """Logits (B,) from item vectors and augmented vectors that are already computed.

        Args:
            items: Item vectors (R, E); row 0 is padding.
            targets: Items to be scored, index among R, (B,).
            history: Past items, index among R, 0 at padding, (B, L).
            history_ratings: Rows of their ratings (B, L).
            profile: Profile fields (B, F, E).
            augmented: h_u and h_i (B, 2, q); None without knowledge.
        """
        shape = (*history.shape, items.shape[1])
        mask = history != PADDING
        past = items.index_select(0, history.reshape(-1)).view(shape) + self.ratings(
            history_ratings
        )
        inputs = BackboneInputs(
            users=profile,
            target=items.index_select(0, targets),
            history=past,  # zeros at padding: row 0 of both embeddings is zero
            mask=mask,
            augmented=augmented,
        )
        logits: Tensor = self.backbone(inputs)
        return logits

    def _require_hein(self) -> HEIN:
        if self.hein is None:
            raise ValueError("this model has no knowledge side")
        return self.hein
