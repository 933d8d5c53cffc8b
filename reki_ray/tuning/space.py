"""Search spaces of `reki tune`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final

from reki_ray.config import Arm, Backbone, Domain, TrainConfig, TuneConfig
from reki_ray.config.keys import flat, merged, nested
from reki_ray.config.network import BACKBONES, WITH_HISTORY
from reki_ray.errors import ConfigError
from reki_ray.training.arms import ARMS

Space = Mapping[str, Domain]
"""Dotted key of `train` to its possible values."""

Settings = Mapping[str, Any]
"""Dotted key of `train` to its value, JSON-ready."""


def _choice(*values: Any) -> Domain:
    return Domain(choice=values)


SHARED: Final[Space] = MappingProxyType(
    {
        "learning_rate": Domain(loguniform=(3e-4, 1e-2)),
        "weight_decay": Domain(loguniform=(1e-6, 1e-1)),
        "batch_size": _choice(512, 1024, 2048, 4096),
        "network.embedding": _choice(8, 16, 32, 64),
        "network.mlp": _choice([64, 32], [128, 64], [200, 80], [400, 200], [256, 128, 64]),
        "network.dropout": Domain(uniform=(0.0, 0.5)),
        "id_dropout": Domain(uniform=(0.0, 0.3)),
        "history": _choice(20, 30, 50, 80),
    }
)
"""Searched for every backbone and arm."""

_ATTENTION: Final[Space] = {
    "network.interaction_layers": Domain(int=(1, 4)),
    "network.heads": _choice(1, 2, 4),
    "network.head_size": _choice(8, 16, 32, 64),
}

SIZES: Final[Mapping[str, Space]] = MappingProxyType(
    {
        "din": {"network.attention": _choice([16, 8], [32, 16], [64, 32], [80, 40])},
        "dien": {"network.auxiliary_weight": Domain(uniform=(0.0, 1.0))},
        "dcnv1": {"network.cross_layers": Domain(int=(1, 6))},
        "dcnv2": {"network.cross_layers": Domain(int=(1, 4))},
        "deepfm": {},
        "xdeepfm": {"network.cin": _choice([25], [50], [25, 25], [50, 50], [100, 100])},
        "autoint": _ATTENTION,
        "fibinet": {"network.senet_reduction": Domain(int=(1, 4))},
        "fignn": _ATTENTION,
    }
)
"""Searched for one backbone: sizes that only some backbones read."""

KNOWLEDGE: Final[Space] = MappingProxyType(
    {
        "hein.kind": _choice("hein", "mixture", "mlp", "linear"),
        "hein.scaling": _choice("length", "standardise", "whiten", "principal"),
        "hein.components": _choice(64, 128, 256, 512),
        "hein.rate": Domain(loguniform=(0.5, 4.0)),
        "hein.enrich_items": _choice(False, True),
        "hein.alignment_weight": _choice(0.0, 0.01, 0.1),
        "hein.shared_experts": Domain(int=(1, 5)),
        "hein.dedicated_experts": Domain(int=(1, 6)),
        "hein.hidden": _choice(32, 64, 128, 256),
        "hein.output": _choice(8, 16, 32, 64),
        "gate.items": _choice(None, 2.0, 10.0, 50.0),
        "gate.users": _choice(None, 2.0, 10.0, 50.0),
    }
)
"""Searched for arms with augmented vectors."""


def space_of(config: TuneConfig, backbone: Backbone, arm: Arm) -> dict[str, Domain]:
    """Space for a backbone and an arm, with the changes of the configuration.

    Raises:
        ConfigError: Nothing is left to search.
    """
    space: dict[str, Domain | None] = {
        **SHARED,
        **SIZES.get(backbone, {}),
        **KNOWLEDGE,
        **config.space,
    }
    chosen = {
        key: domain
        for key, domain in space.items()
        if domain is not None
        and _matters(key, backbone, arm)
        and (not config.only or any(fnmatchcase(key, pattern) for pattern in config.only))
    }
    if not chosen:
        raise ConfigError(
            f"there is nothing to search for {backbone} with arm {arm}",
            where="tune.space, tune.only",
            todo=f"The keys are {', '.join(k for k in space if _matters(k, backbone, arm))}.",
        )
    return dict(sorted(chosen.items()))


def with_settings(train: TrainConfig, backbone: Backbone, settings: Settings) -> TrainConfig:
    """Configuration of one backbone with changed settings, see `complete`."""
    changes = nested(complete(train, backbone, settings))
    tree = merged(train.of(backbone).model_dump(exclude={"tuned"}), changes)
    return TrainConfig.model_validate({**tree, "backbones": (backbone,)})


def complete(train: TrainConfig, backbone: Backbone, settings: Settings) -> dict[str, Any]:
    """Changed settings, and those that follow from them.

    Backbones without a history of their own treat augmented vectors as fields: if `hein.output`
    equals `network.embedding`, it follows it. Without shared experts there is nothing to align.
    """
    changed, own = dict(settings), train.of(backbone)
    alike = backbone not in WITH_HISTORY and own.hein.output == own.network.embedding
    if alike and "network.embedding" in changed:
        changed.setdefault("hein.output", changed["network.embedding"])
    if changed.get("hein.kind", own.hein.kind) not in ("hein", "mixture"):
        changed["hein.alignment_weight"] = 0.0
    return changed


def values(train: TrainConfig, keys: Iterable[str]) -> dict[str, Any]:
    """JSON-ready values of some keys of a configuration."""
    content = flat(train.model_dump(mode="json"))
    return {key: content[key] for key in keys}


def _matters(key: str, backbone: Backbone, arm: Arm) -> bool:
    """Whether a setting changes the result of a backbone with an arm."""
    inputs = ARMS[arm]
    section = key.partition(".")[0]
    if section in ("hein", "gate") and not inputs.uses_knowledge:
        return False
    if key == "gate.users":
        return inputs.users is not None
    if key == "hein.output":
        return backbone in WITH_HISTORY or backbone not in BACKBONES
    if key == ("history" if not inputs.full_history else "base_history"):
        return False
    of_others = {name for sizes in SIZES.values() for name in sizes}
    return backbone not in SIZES or key in SIZES[backbone] or key not in of_others
