"""Conventional recommendation models that knowledge is infused into, by name."""

from __future__ import annotations

from torch import nn

from reki_ray.config import DinConfig
from reki_ray.errors import ConfigError
from reki_ray.models.backbones.din import DIN
from reki_ray.models.backbones.protocol import Backbone, BackboneInputs

__all__ = ["DIN", "Backbone", "BackboneInputs", "build_backbone"]


def build_backbone(name: str, config: DinConfig, user_fields: int, augmented: int) -> nn.Module:
    """Network of a backbone; it fulfils `Backbone`.

    Args:
        name: Value of `train.backbone`.
        config: Sizes.
        user_fields: Number of profile fields.
        augmented: Length q of an augmented vector; 0 builds the network without knowledge.

    Raises:
        ConfigError: There is no such backbone.
    """
    if name == "din":
        return DIN(config, user_fields, augmented)
    raise ConfigError(
        f"there is no backbone {name!r}",
        where="train.backbone",
        todo="Use din.",
    )
