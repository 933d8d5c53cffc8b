"""Dotted keys of the configuration, as `network.mlp`, and trees of settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from reki_ray.config.base import Section


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
            raise ValueError(f"{where} has no key {key!r}; the nearest is {nearest(key, known)!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that is written most like another one."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]


def describe_problems(
    error: ValidationError, model: type[BaseModel], whole: str = "the file"
) -> str:
    """What is wrong with content that broke a model's rules: each key and its problem.

    Args:
        error: What the model raised.
        model: That model.
        whole: Stands for the key where a rule concerns all of it.
    """
    found = []
    for problem in error.errors():
        shown, names = _resolve(model, problem["loc"])
        message = problem["msg"]
        if problem["type"] == "extra_forbidden" and names:
            message += f"; {_instead(str(problem['loc'][-1]), names, model)}"
        found.append(f"{'.'.join(shown) or whole}: {message}")
    return "; ".join(found)


def _resolve(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """A place as the file has it, without names of alternatives, and the keys of its section."""
    models, shown = [model], []
    for number, part in enumerate(loc, start=1):
        fields = [one.model_fields[str(part)] for one in models if part in one.model_fields]
        chosen = [one for one in models if len(models) > 1 and part in _tags(one)]
        if fields and number < len(loc):
            models = [found for field in fields for found in _models(field.annotation)]
        elif chosen:
            models = chosen
            continue
        shown.append(str(part))
    return shown, [name for one in models for name in one.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Models that a value of this type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> set[Any]:
    """By what pydantic names a model among its alternatives."""
    kinds = [get_args(field.annotation) for field in model.model_fields.values()]
    return {model.__name__, *(value for values in kinds for value in values if value.__hash__)}


def _instead(key: str, names: list[str], model: type[BaseModel]) -> str:
    """What a key that does not exist may have been meant to be."""
    if close := difflib.get_close_matches(key, names, n=1):
        return f"the nearest key is {close[0]}"
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == key]
    if elsewhere:
        return f"there is {' and '.join(elsewhere)}"
    return f"the keys here are {', '.join(names)}"


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models(field.annotation):
            yield from _paths(inner, f"{prefix}{name}.")
