"""What the commands of `reki` share: their options, and how results are printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console

from reki_ray.config import RekiConfig, load_config
from reki_ray.core.strict_json import strict_json
from reki_ray.core.workspace import Workspace
from reki_ray.store.versions import VersionStore, store_of

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
    """Load the configuration and open the workspace that the options name."""
    loaded = load_config(config, workspace=workspace)
    return loaded, Workspace(loaded.root)


def open_store(config: Path, workspace: str | None) -> VersionStore:
    """Open the published versions of the run that the options name."""
    return store_of(*open_run(config, workspace))


def names(listed: str) -> list[str]:
    """Split a list as `din, dcnv2`."""
    return [name.strip() for name in listed.split(",")]


def show(rendered: Any, content: Any, *, as_json: bool) -> None:
    """Print a result: by Rich for people, or its content, such as pydantic models, as JSON."""
    if as_json:
        sys.stdout.write(strict_json(to_jsonable_python(content), indent=2) + "\n")
    else:
        # If the width is unknown, keep the lines of tables whole.
        Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(rendered)
