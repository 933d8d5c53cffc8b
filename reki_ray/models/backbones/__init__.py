"""Conventional recommendation models that knowledge is infused into."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from reki_ray.models.backbones.autoint import AutoInt
from reki_ray.models.backbones.dcn import DCNv1, DCNv2
from reki_ray.models.backbones.deepfm import DeepFM, XDeepFM
from reki_ray.models.backbones.dien import DIEN
from reki_ray.models.backbones.din import DIN
from reki_ray.models.backbones.fibinet import FiBiNET
from reki_ray.models.backbones.fignn import FiGNN
from reki_ray.models.inputs import BackboneInputs, Output

__all__ = ["BACKBONES", "BackboneInputs", "Output"]

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
"""Backbones that `train.backbones` may name without an import path."""
