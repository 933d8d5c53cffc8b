"""Commands of `reki` that serve, update and compare published versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reki_ray.cli.options import (
    ConfigOption,
    JsonOption,
    WorkspaceOption,
    names,
    open_run,
    open_store,
    show,
)
from reki_ray.cli.views import published
from reki_ray.core.progress import Reporter
from reki_ray.errors import ConfigError
from reki_ray.store import admin
from reki_ray.store.versions import store_of

ExpectedOption = Annotated[
    int | None,
    typer.Option(help="Only if this version is served: a repeated command has no effect."),
]

app = typer.Typer()
experiment_app = typer.Typer(help="Divide users between published versions.", no_args_is_help=True)
app.add_typer(experiment_app, name="experiment")


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


@experiment_app.command("start")
def start_experiment(
    name: Annotated[str, typer.Argument(help="Name; under its name an experiment keeps its salt.")],
    variants: Annotated[
        list[str],
        typer.Argument(
            help="Variants as NAME=VERSION:SHARE, the base first: base=3:0.5 reki=4:0.5"
        ),
    ],
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start an experiment, or change the shares or versions of the running one."""
    from reki_ray.experiments import experiment  # not needed by other commands

    loaded, opened = open_run(config, workspace)
    started = experiment.start_experiment(
        store_of(loaded, opened).location,
        name,
        dict(_variant(text) for text in variants),
        kept_versions=loaded.serve.kept_versions,
    )
    show(published.experiment_table(started), started, as_json=as_json)


@experiment_app.command("stop")
def stop_experiment(
    config: ConfigOption, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """End the running experiment: all users get the promoted version again."""
    from reki_ray.experiments import experiment  # not needed by other commands

    stopped = experiment.stop_experiment(open_store(config, workspace).location)
    show(published.experiment_table(stopped), stopped, as_json=as_json)


@app.command("ab")
def compare_variants(
    config: ConfigOption,
    name: Annotated[
        str | None, typer.Argument(help="Experiment, running or ended; default: the running one.")
    ] = None,
    workspace: WorkspaceOption = None,
    since: Annotated[
        int | None,
        typer.Option(help="Count from this second since the epoch; default: the last change."),
    ] = None,
    window: Annotated[
        int, typer.Option(help="Seconds from an exposure to a click that names no request.")
    ] = 1800,
    clicks: Annotated[str, typer.Option(help="Types of events that count as clicks.")] = "click",
    as_json: JsonOption = False,
) -> None:
    """Compare the variants of an experiment: click rate, lift, intervals, sample ratio."""
    from reki_ray.experiments import analysis  # imports scipy

    result = analysis.ab(
        open_store(config, workspace).location,
        name,
        since=since,
        window=window,
        clicks=names(clicks),
    )
    show(published.ab_table(result), result, as_json=as_json)


def _variant(text: str) -> tuple[str, tuple[int, float]]:
    name, _, rest = text.partition("=")
    version, _, share = rest.partition(":")
    try:
        return name, (int(version.removeprefix("v")), float(share))
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a variant",
            where="reki experiment start",
            todo="Write NAME=VERSION:SHARE, as base=3:0.5.",
        ) from error
