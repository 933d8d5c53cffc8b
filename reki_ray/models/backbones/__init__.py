"""Conventional recommendation models that knowledge is infused into, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from reki_ray.config import NetworkConfig
from reki_ray.models.backbones.autoint import AutoInt
from reki_ray.models.backbones.dcn import DCNv1, DCNv2
from reki_ray.models.backbones.deepfm import DeepFM
from reki_ray.models.backbones.dien import DIEN
from reki_ray.models.backbones.din import DIN
from reki_ray.models.backbones.fibinet import FiBiNET
from reki_ray.models.backbones.fignn import FiGNN
from reki_ray.models.backbones.protocol import Backbone, BackboneInputs, Output
from reki_ray.models.backbones.xdeepfm import XDeepFM
from reki_ray.models.registry import build_imported

__all__ = ["BACKBONES", "Backbone", "BackboneInputs", "Output", "build_backbone"]

BACKBONES: Mapping[str, type[nn.Module]] = MappingProxyType(
    {
        "din": DIN,
        "dien": DIEN,
        "dcnv1": DCNv1,
        "dcnv2": DCNv2,
        "deepfm": DeepFM,
        "xdeepfm": XDeepFM,
        "autoint": AutoInt,
        "fibinet": FiBiNET,
        "fignn": FiGNN,
    }
)
"""Class of each backbone that `train.backbones` may name without an import path."""


def build_backbone(name: str, config: NetworkConfig, user_fields: int, augmented: int) -> nn.Module:
    """Network of a backbone; it fulfils `Backbone`.

    Args:
        name: One of `train.backbones`: a name, or the import path of a class that is called
            with the other arguments as the backbones here are.
        config: Sizes.
        user_fields: Number of profile fields.
        augmented: Length q of an augmented vector; 0 builds the network without knowledge.

    Raises:
        ConfigError: There is no such backbone.
    """
    if name in BACKBONES:
        return BACKBONES[name](config, user_fields, augmented)
    return build_imported(
        name, config, user_fields, augmented, where="train.backbones", protocol=Backbone
    )
