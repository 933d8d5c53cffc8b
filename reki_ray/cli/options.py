"""What the commands of `reki` share: options of their command lines, and how results are shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from reki_ray.config import RekiConfig, load_config
from reki_ray.core.strict_json import strict_json
from reki_ray.core.workspace import Workspace

_PLAIN_WIDTH = 120

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="Configuration, a YAML file.")]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", help="Folder or URL of the run; overrides the file's.")
]
ForceOption = Annotated[
    list[str] | None, typer.Option("--force", help="Run this stage even when unchanged.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable output.")]


def open_run(config: Path, workspace: str | None) -> tuple[RekiConfig, Workspace]:
    """A run's configuration and folder, as the options of a command name them.

    Raises:
        ConfigError: See `load_config`.
    """
    loaded = load_config(config, workspace=workspace)
    return loaded, Workspace(loaded.root)


def show(rendered: Any, content: Any, *, as_json: bool) -> None:
    """Print a result, for people or for programs."""
    if as_json:
        sys.stdout.write(strict_json(content, indent=2) + "\n")
    else:
        # Where the width is unknown, tables keep their lines whole.
        Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(rendered)
