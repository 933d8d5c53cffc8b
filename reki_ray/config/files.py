"""YAML files on disk, and what of them the configuration takes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reki_ray.errors import ConfigError


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML's own loader keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        marks: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = marks.setdefault((key.tag, key.value), key.start_mark)
            if first is not key.start_mark:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is in line {first.line + 1} and again in line "
                    f"{key.start_mark.line + 1}",
                )
        return node


def parse_yaml(text: str) -> Any:
    """Content of a YAML document without repeated keys.

    Raises:
        yaml.YAMLError: It is no YAML, or a key is there twice.
    """
    try:
        return yaml.load(text, _UniqueKeys)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error  # a 13th month


def read_mapping(path: Path, *, todo: str) -> dict[str, Any]:
    """Content of a YAML file of `key: value` lines.

    Args:
        path: The file.
        todo: What to do where it cannot be read.

    Raises:
        ConfigError: It is missing, is no YAML, or holds no mapping.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration: {error}", where=str(path), todo=todo
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the configuration is no valid YAML: {error}",
            where=str(path),
            todo="Correct the line that the message names.",
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            "the configuration is no mapping",
            where=str(path),
            todo="Write `key: value` lines; configs/ holds examples.",
        )
    return content


def read_tuned(path: Path) -> dict[str, Any]:
    """Settings by backbone out of a file that `reki tune` wrote, or out of a folder of them.

    Raises:
        ConfigError: There is no such file, it is no YAML, or two files name one backbone.
    """
    todo = "Name with train.tuned a file or folder that `reki tune --out` wrote."
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError("the folder of tuned settings is empty", where=str(path), todo=todo)
    found: dict[str, Any] = {}
    for file in files:
        for backbone, settings in read_mapping(file, todo=todo).items():
            if backbone in found:
                raise ConfigError(
                    f"two files hold settings of {backbone}",
                    where=str(file),
                    todo="Keep one of them in the folder.",
                )
            found[backbone] = settings
    return found
