"""Rerankers that knowledge is infused into."""

from reki_ray.models.rerankers.dlcm import DLCM
from reki_ray.models.rerankers.mir import MIR
from reki_ray.models.rerankers.prm import PRM
from reki_ray.models.rerankers.protocol import InputDims, Reranker, RerankerSizes, RerankInputs
from reki_ray.models.rerankers.setrank import SetRank

__all__ = [
    "DLCM",
    "MIR",
    "PRM",
    "InputDims",
    "RerankInputs",
    "Reranker",
    "RerankerSizes",
    "SetRank",
]
