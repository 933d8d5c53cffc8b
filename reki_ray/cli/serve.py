"""Commands of `reki` that publish, serve and update versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reki_ray.cli.options import (
    ConfigOption,
    JsonOption,
    WorkspaceOption,
    open_run,
    open_store,
    show,
)
from reki_ray.cli.views import published
from reki_ray.core.progress import Reporter
from reki_ray.store import admin
from reki_ray.store.versions import store_of

ExpectedOption = Annotated[
    int | None,
    typer.Option(help="Only if this version is served: a repeated command has no effect."),
]

app = typer.Typer()


@app.command()
def serve(config: ConfigOption, workspace: WorkspaceOption = None) -> None:
    """Serve the published version until interrupted."""
    from deployments import launcher  # Ray Serve is slow to import

    launcher.serve_forever(*open_run(config, workspace), Reporter())


@app.command("update")
def run_update(
    config: ConfigOption,
    events: Annotated[
        Path | None,
        typer.Argument(
            help="New events, Parquet or CSV; default: the events that an earlier update kept."
        ),
    ] = None,
    items: Annotated[Path | None, typer.Option(help="New or changed items.")] = None,
    users: Annotated[Path | None, typer.Option(help="New or changed users.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add new events, ask about clusters that drifted, publish a new version."""
    from reki_ray.data.inbox import BatchFiles
    from reki_ray.stages import update  # imports Ray and torch

    loaded, opened = open_run(config, workspace)
    files = BatchFiles(events, items, users) if events or items or users else None
    round_ = update.update(loaded, files, Reporter(opened))
    show(published.update_table(round_), round_, as_json=as_json)


@app.command("versions")
def show_versions(
    config: ConfigOption, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Show the published versions, and which of them is served."""
    versions = admin.versions(open_store(config, workspace))
    show(published.versions_table(versions), versions, as_json=as_json)


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="Number of the version to serve.")],
    config: ConfigOption,
    expected: ExpectedOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a version from now on; a running service switches to it without a restart."""
    versions = admin.promote(open_store(config, workspace), version, expected=expected)
    show(published.versions_table(versions), versions, as_json=as_json)


@app.command()
def rollback(
    config: ConfigOption,
    expected: ExpectedOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the previously promoted version again."""
    versions = admin.rollback(open_store(config, workspace), expected=expected)
    show(published.versions_table(versions), versions, as_json=as_json)


@app.command()
def compact(
    config: ConfigOption,
    version: Annotated[
        int | None, typer.Argument(help="A version in layers; default: the served one.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge a version that is stored in layers into one full version, and serve it."""
    versions = admin.compact(open_store(config, workspace), version)
    show(published.versions_table(versions), versions, as_json=as_json)


@app.command("export")
def run_export(
    config: ConfigOption,
    version: Annotated[
        int | None, typer.Option(help="Number of the version; default: the served one.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a version's vectors to the store that store.vectors names; existing ones stay."""
    loaded, opened = open_run(config, workspace)
    export = admin.export(store_of(loaded, opened), version, Reporter(opened))
    show(published.export_text(export), export, as_json=as_json)
