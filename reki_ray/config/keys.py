"""Dotted keys of the configuration, as `network.mlp`, and trees of settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from reki_ray.config.section import Section


def leaves(model: type[Section], prefix: str = "") -> tuple[str, ...]:
    """Dotted keys of all fields of a section that are no sections themselves."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found += leaves(kind, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return tuple(found)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key, out of nested mappings."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, out of settings by dotted key."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return tree


def merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with the settings of another one put over it."""
    found = dict(tree)
    for name, value in over.items():
        below = found.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            found[name] = merged(below, value)
        else:
            found[name] = value
    return found


def check_keys(given: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Refuse a key that does not exist.

    Args:
        given: Dotted keys.
        known: Those that exist.
        where: Section they stand in, for the message.

    Raises:
        ValueError: A key is unknown; the message names it and the nearest that exists.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise ValueError(f"{where} has no key {key!r}; the nearest is {near[0]!r}")


def describe_problems(error: ValidationError, whole: str = "the file") -> str:
    """What is wrong with content that broke a model's rules: each key and its problem.

    Args:
        error: What the model raised.
        whole: Stands for the key where a rule concerns all of it.
    """
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or whole}: {problem['msg']}"
        for problem in error.errors()
    )
