"""Rerankers that knowledge is infused into."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from reki_ray.models.inputs import RerankerSizes, RerankInputs
from reki_ray.models.rerankers.listwise import DLCM, PRM, SetRank
from reki_ray.models.rerankers.mir import MIR

__all__ = ["RERANKERS", "RerankInputs", "RerankerSizes"]

RERANKERS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"dlcm": DLCM, "prm": PRM, "setrank": SetRank, "mir": MIR}
)
"""Rerankers that `train.rerankers` may name without an import path."""
