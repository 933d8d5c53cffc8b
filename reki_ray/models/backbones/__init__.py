"""Conventional recommendation models that knowledge is infused into."""

from reki_ray.models.backbones.autoint import AutoInt
from reki_ray.models.backbones.dcn import DCNv1, DCNv2
from reki_ray.models.backbones.deepfm import DeepFM, XDeepFM
from reki_ray.models.backbones.dien import DIEN
from reki_ray.models.backbones.din import DIN
from reki_ray.models.backbones.fibinet import FiBiNET
from reki_ray.models.backbones.fignn import FiGNN
from reki_ray.models.backbones.protocol import Backbone, BackboneInputs, Output

__all__ = [
    "DIEN",
    "DIN",
    "AutoInt",
    "Backbone",
    "BackboneInputs",
    "DCNv1",
    "DCNv2",
    "DeepFM",
    "FiBiNET",
    "FiGNN",
    "Output",
    "XDeepFM",
]
