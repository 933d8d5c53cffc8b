"""Builders of adaptors, backbones and rerankers from the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from reki_ray.config import HeinConfig, NetworkConfig
from reki_ray.core.imports import load
from reki_ray.errors import ConfigError
from reki_ray.models.backbones import BACKBONES
from reki_ray.models.backbones.layers import count_fields
from reki_ray.models.hein import HEIN, Adaptor, SharedMixture, TwoTowers
from reki_ray.models.inputs import InputDims, RerankerSizes
from reki_ray.models.rerankers import RERANKERS


def build_adaptor(input_dim: int, config: HeinConfig) -> Adaptor:
    """Adaptor of `train.hein.kind`, for representations of length `input_dim`."""
    hidden, output = config.hidden, config.output

    def tower() -> nn.Module:
        if config.kind == "linear":
            return nn.Linear(input_dim, output)
        layers = (nn.Linear(input_dim, hidden), nn.ReLU(), nn.Linear(hidden, output), nn.ReLU())
        return nn.Sequential(*layers)

    shared, dedicated = config.shared_experts, config.dedicated_experts
    if config.kind == "hein":
        return HEIN(
            input_dim,
            hidden=hidden,
            output=output,
            shared_experts=shared,
            dedicated_experts=dedicated,
        )
    if config.kind == "mixture":
        return SharedMixture(input_dim, experts=shared + dedicated, hidden=hidden, output=output)
    return TwoTowers(tower(), tower())


def build_backbone(name: str, config: NetworkConfig, user_fields: int, augmented: int) -> nn.Module:
    """Network that maps `BackboneInputs` to an `Output`.

    Args:
        name: One of `train.backbones`: a name, or the import path of a class that is called with
            the other arguments.
        augmented: Length q of an augmented vector; 0 builds the network without knowledge.

    Raises:
        ConfigError: There is no such backbone.
    """
    if name not in BACKBONES:
        return _build_imported("backbone", name, config, user_fields, augmented)
    sizes = {
        **dict(config),
        "embedding_dim": config.embedding,
        "user_fields": user_fields,
        "augmented_dim": augmented,
        "fields": count_fields(user_fields, augmented=augmented > 0),
    }
    return _build(BACKBONES[name], sizes)


def build_reranker(name: str, sizes: RerankerSizes) -> nn.Module:
    """Network that maps `RerankInputs` to logits.

    Args:
        name: One of `train.rerankers`: a name, or the import path of a class that is called with
            the sizes.

    Raises:
        ConfigError: There is no such reranker.
    """
    if name not in RERANKERS:
        return _build_imported("reranker", name, sizes)
    dims = InputDims(sizes.network.embedding, sizes.user_fields, sizes.augmented)
    layers = {**dict(sizes.network), **dict(sizes.reranker)}
    return _build(RERANKERS[name], {**layers, "dims": dims, "list_size": sizes.list_size})


def _build(network: type[nn.Module], sizes: Mapping[str, Any]) -> nn.Module:
    """Call a class with the sizes that its arguments name."""
    return network(**{name: sizes[name] for name in inspect.signature(network).parameters})


def _build_imported(kind: str, path: str, *arguments: object) -> nn.Module:
    """Call the class at an import path `package.module:Name`."""
    network = load(path)(*arguments)
    if not isinstance(network, nn.Module):
        inputs = "BackboneInputs" if kind == "backbone" else "RerankInputs"
        raise ConfigError(
            f"{kind} {path!r} made a {type(network).__name__}, not a torch module",
            where=f"train.{kind}s",
            todo=f"Name a torch.nn.Module that takes reki_ray.models.{kind}s.{inputs}.",
        )
    return network
