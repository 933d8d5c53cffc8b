"""Dotted keys of the configuration, as `network.mlp`, and trees of settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from reki_ray.config.base import Section


def leaves(model: type[Section], prefix: str = "") -> tuple[str, ...]:
    """Dotted keys of all fields of a section, without its subsections themselves."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += leaves(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return tuple(keys)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as settings by dotted key."""
    settings: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = value
    return settings


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key as nested mappings."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return tree


def merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a tree with the settings of another one on top."""
    result = dict(tree)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[name] = merged(below, value)
        else:
            result[name] = value
    return result


def check_keys(given: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Refuse unknown dotted keys of the section `where`.

    Raises:
        ValueError: A key is unknown; the message names the nearest known one.
    """
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{where} has no key {key!r}; the nearest is {nearest(key, known)!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelled most like another one."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]


def describe_problems(
    error: ValidationError, model: type[BaseModel], whole: str = "the file"
) -> str:
    """List each invalid key of a model and its problem; rules of no single key name the `whole`."""
    problems = []
    for problem in error.errors():
        shown, names = _resolve(model, problem["loc"])
        message = problem["msg"]
        if problem["type"] == "extra_forbidden" and names:
            message += f"; {_instead(str(problem['loc'][-1]), names, model)}"
        problems.append(f"{'.'.join(shown) or whole}: {message}")
    return "; ".join(problems)


def _resolve(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """Keys on the way to a place in the file, and all keys of its section."""
    models, shown = [model], []
    for number, part in enumerate(loc, start=1):
        fields = [model.model_fields[str(part)] for model in models if part in model.model_fields]
        chosen = [model for model in models if len(models) > 1 and part in _tags(model)]
        if fields and number < len(loc):
            models = [inner for field in fields for inner in _models(field.annotation)]
        elif chosen:
            models = chosen
            continue
        shown.append(str(part))
    return shown, [name for model in models for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> set[Any]:
    """Names that pydantic gives a model in a union: its class and its discriminator values."""
    kinds = [get_args(field.annotation) for field in model.model_fields.values()]
    return {model.__name__, *(value for values in kinds for value in values if value.__hash__)}


def _instead(key: str, names: list[str], model: type[BaseModel]) -> str:
    """Suggestion for an unknown key."""
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
