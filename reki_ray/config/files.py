"""YAML files that the configuration reads."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Final

import yaml

from reki_ray.errors import ConfigError

_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE: Final = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, and reads 010 and 1:30 as text.

    PyYAML keeps the last of duplicate keys, and by YAML 1.1 reads 010 as 8 and 1:30 as 90.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[object, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            # By value: 1 and 0x1 are the same key, and so are a key and its alias.
            value = key.tag if key.tag == _MERGE else self.construct_object(key)
            line = key.start_mark.line + 1
            if value in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is in line {lines[value]} and again in line {line}",
                )
            lines[value] = line
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node).replace("_", ""), 0)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(
                problem=f"{node.value} in line {node.start_mark.line + 1} is not a finite number"
            )
        return value


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in _NUMBERS]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _NUMBERS[0],
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_NUMBERS[0], _Loader.construct_yaml_int)
_Loader.add_constructor(_NUMBERS[1], _Loader.construct_yaml_float)


def parse_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        yaml.YAMLError: It is not YAML, has a duplicate key, or a number that is not finite.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error  # a 13th month


def read_mapping(path: Path, *, todo: str) -> dict[str, Any]:
    """Read a YAML file of `key: value` lines; `todo` is advice if it cannot be read.

    Raises:
        ConfigError: It is missing, is not YAML, or is not a mapping.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration: {error}", where=str(path), todo=todo
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the configuration is not valid YAML: {error}",
            where=str(path),
            todo="Correct the line that the message names.",
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            "the configuration is not a mapping",
            where=str(path),
            todo="Write `key: value` lines; configs/ holds examples.",
        )
    return content


def read_tuned(path: Path) -> dict[str, Any]:
    """Read settings by backbone from a file that `reki tune` wrote, or a folder of such files.

    Raises:
        ConfigError: The file is missing or not YAML, or two files name the same backbone.
    """
    todo = "Set train.tuned to a file or folder that `reki tune --out` wrote."
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError("the folder of tuned settings is empty", where=str(path), todo=todo)
    tuned: dict[str, Any] = {}
    for file in files:
        for backbone, settings in read_mapping(file, todo=todo).items():
            if backbone in tuned:
                raise ConfigError(
                    f"two files hold settings of {backbone}",
                    where=str(file),
                    todo="Keep one of them in the folder.",
                )
            tuned[backbone] = settings
    return tuned
