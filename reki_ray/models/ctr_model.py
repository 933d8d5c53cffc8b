"""Backbone and HEIN as one network that trains jointly."""

from __future__ import annotations

import torch
from typing_extensions import override

from reki_ray.models.base_model import Architecture, EmbeddedModel
from reki_ray.models.features import FeatureSpace
from reki_ray.models.inputs import BackboneInputs, Output, RerankInputs
from reki_ray.models.registry import build_backbone


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
                augmented=architecture.augmented,
            ),
        )

    @override
    def run_network(self, inputs: RerankInputs) -> Output:
        augmented = None
        if inputs.augmented_user is not None and inputs.augmented_items is not None:
            augmented = torch.stack([inputs.augmented_user, inputs.augmented_items], dim=1)
        output: Output = self.backbone(
            BackboneInputs(
                users=inputs.users,
                target=inputs.candidates,
                history=inputs.history,
                mask=inputs.history_mask,
                augmented=augmented,
            )
        )
        return output
