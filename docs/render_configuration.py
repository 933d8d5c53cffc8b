"""Writes docs/configuration.md from the configuration tree."""

from __future__ import annotations

import math
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from reki_ray.config import RekiConfig

TARGET = Path(__file__).with_name("configuration.md")
HEADER = """# Configuration

One YAML file holds a run. An unknown key is an error. This page is written by
`python docs/render_configuration.py`; `configs/` holds examples.
"""


def render() -> str:
    """The page as Markdown, one section of the tree a heading."""
    return HEADER + "".join(_section(model, path) for path, model in _walk(RekiConfig, ""))


def _walk(model: type[BaseModel], path: str) -> list[tuple[str, type[BaseModel]]]:
    found = [(path, model)]
    for name, field in model.model_fields.items():
        for child in _models(field.annotation):
            found += _walk(child, f"{path}.{name}".lstrip("."))
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _section(model: type[BaseModel], path: str) -> str:
    rows = []
    for name, field in model.model_fields.items():
        if _models(field.annotation):
            continue
        default = "required" if field.is_required() else _code(field.default)
        text = (field.description or "Selects this form of the section.").replace("|", "\\|")
        rows.append(f"| `{name}` | {default} | {text} |\n")
    summary = (model.__doc__ or "").strip().splitlines()[0]
    title = f"## `{path}`: {summary}" if path else f"## Top level: {summary}"
    return f"\n{title}\n\n| key | default | meaning |\n|---|---|---|\n{''.join(rows)}"


def _code(value: Any) -> str:
    """A default as it is written in the file."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
    text = text.removesuffix("...\n").strip()
    # A bar would end the cell, also within backticks.
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
