"""Rerankers that knowledge is infused into, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from reki_ray.models.registry import build_imported
from reki_ray.models.rerankers.dlcm import DLCM
from reki_ray.models.rerankers.mir import MIR
from reki_ray.models.rerankers.prm import PRM
from reki_ray.models.rerankers.protocol import Reranker, RerankerSizes, RerankInputs
from reki_ray.models.rerankers.setrank import SetRank

__all__ = ["RERANKERS", "RerankInputs", "Reranker", "RerankerSizes", "build_reranker"]

RERANKERS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"dlcm": DLCM, "prm": PRM, "setrank": SetRank, "mir": MIR}
)
"""Class of each reranker that `train.rerankers` may name without an import path."""


def build_reranker(name: str, sizes: RerankerSizes) -> nn.Module:
    """Network of a reranker; it fulfils `Reranker`.

    Args:
        name: One of `train.rerankers`: a name, or the import path of a class that is called with
            the sizes as the rerankers here are.
        sizes: What it is built from.

    Raises:
        ConfigError: There is no such reranker.
    """
    if name in RERANKERS:
        return RERANKERS[name](sizes)
    return build_imported(name, sizes, where="train.rerankers", protocol=Reranker)
