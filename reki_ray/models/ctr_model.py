"""Backbone and HEIN as one network that trains jointly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reki_ray.models.backbones import BackboneInputs, Output
from reki_ray.models.base_model import Architecture, EmbeddedModel, History, Items, KnowledgeVectors
from reki_ray.models.features import PADDING, FeatureSpace
from reki_ray.models.registry import build_backbone


@dataclass(frozen=True)
class ModelBatch:
    """B samples over R distinct items and U distinct users.

    Whatever depends on an id alone is computed once per batch, not per sample.

    Args:
        item_ids: Rows of the item ids (R,); entry 0 is padding.
        item_attributes: Rows (R, width) by attribute.
        targets: Item to score, index among R, (B,); of lists (B, K), 0 at padding.
        user_attributes: Rows (U, width) by attribute.
        distinct_users: Number U of distinct users.
        users: Index among U, (B,).
        user_knowledge: Representations r_u of the samples; None without knowledge.
        item_knowledge: Representations r_i of the R items, of past items only if the model enriches
            them; None without knowledge.
    """

    item_ids: Tensor
    item_attributes: Mapping[str, Tensor]
    targets: Tensor
    history: History
    user_attributes: Mapping[str, Tensor]
    distinct_users: int
    users: Tensor
    user_knowledge: KnowledgeVectors | None
    item_knowledge: KnowledgeVectors | None


class CTRModel(EmbeddedModel):
    """Click probability of (user, history, item), with h_u and h_i as extra feature fields."""

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

    def forward(self, batch: ModelBatch) -> Output:
        """Logits (B,) of a batch, and the loss that the backbone adds in training."""
        h_users, h_items = self.augment(batch.user_knowledge, batch.item_knowledge)
        profile = self.profile(batch.user_attributes, batch.distinct_users)  # (U, F, E)
        output = self.output(
            items=self.embed_items(batch.item_ids, batch.item_attributes, h_items),
            targets=batch.targets,
            history=batch.history,
            profile=profile.index_select(0, batch.users),
            augmented=_pair(h_users, h_items, batch.targets),
        )
        misaligned = self.misalignment(batch.item_ids, batch.targets, batch.item_knowledge)
        losses = [loss for loss in (output.auxiliary, misaligned) if loss is not None]
        return Output(output.logits, torch.stack(losses).sum() if losses else None)

    def output(
        self,
        *,
        items: Items,
        targets: Tensor,
        history: History,
        profile: Tensor,
        augmented: Tensor | None,
    ) -> Output:
        """Output from item vectors and augmented vectors that are already computed.

        Args:
            targets: Items to score, index among R, (B,).
            profile: Profile fields (B, F, E).
            augmented: h_u and h_i (B, 2, q); None without knowledge.
        """
        mask = history.items != PADDING
        inputs = BackboneInputs(
            users=profile,
            target=items.vectors.index_select(0, targets),
            history=self.embed_history(items, history),
            mask=mask,
            augmented=self._gated(augmented, mask, items.gates.index_select(0, targets)),
        )
        output: Output = self.backbone(inputs)
        return output

    def _gated(self, augmented: Tensor | None, mask: Tensor, item_gates: Tensor) -> Tensor | None:
        """h_u and h_i (B, 2, q), each multiplied by its gate."""
        if augmented is None or (self.gate.users is None and self.gate.items is None):
            return augmented
        gates = torch.stack([self.user_gate(mask), item_gates], dim=1)
        return augmented * gates.unsqueeze(-1)


def _pair(h_users: Tensor | None, h_items: Tensor | None, targets: Tensor) -> Tensor | None:
    """h_u and h_i (B, 2, q) of samples, from those of their users and of all items."""
    if h_users is None or h_items is None:
        return None
    return torch.stack([h_users, h_items.index_select(0, targets)], dim=1)
