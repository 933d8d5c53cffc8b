"""Backbone and HEIN as one network that trains jointly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reki_ray.models.backbones import BackboneInputs, Output, build_backbone
from reki_ray.models.embedded_model import Architecture, EmbeddedModel, Items, Knowledge
from reki_ray.models.fields import PADDING, FeatureSpace


@dataclass(frozen=True)
class Batch:
    """B samples over R distinct items and U distinct users.

    Everything that depends on an id alone is computed once a batch, not once a sample.

    Args:
        item_ids: Rows of the item ids (R,); entry 0 is padding.
        item_attributes: Rows (R, width) by attribute.
        targets: Item to be scored, index among R, (B,); of lists (B, K), 0 at padding.
        history: Past items, index among R, 0 at padding, (B, L).
        history_ratings: Rows of their ratings (B, L).
        user_attributes: Rows (U, width) by attribute.
        distinct_users: Number U of distinct users.
        users: Index among U, (B,).
        user_knowledge: Representations r_u; None without knowledge.
        item_knowledge: Representations r_i of the items to be scored, its index of the shape of
            `targets`; None without knowledge.
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


class CTRModel(EmbeddedModel):
    """Click probability of (user, history, item), with h_u and h_i as extra feature fields.

    Args:
        architecture: Kind and sizes of the layers.
        features: Vocabularies.
    """

    def __init__(self, architecture: Architecture, features: FeatureSpace) -> None:
        super().__init__(
            architecture,
            features,
            lambda: build_backbone(
                architecture.backbone,
                architecture.network,
                user_fields=len(features.user_fields),
                augmented=architecture.hein.output if architecture.representation else 0,
            ),
        )

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
        mask = history != PADDING
        inputs = BackboneInputs(
            users=profile,
            target=items.vectors.index_select(0, targets),
            history=self.embed_history(items, history, history_ratings),
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
        gates = [self.user_gate(mask), self.item_gate(seen.index_select(0, targets))]
        return augmented * torch.stack(gates, dim=1).unsqueeze(-1)
