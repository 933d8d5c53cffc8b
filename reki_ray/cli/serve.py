"""Commands of `reki` for what is published: serve it, keep it up to date, compare variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reki_ray.cli.options import ConfigOption, JsonOption, WorkspaceOption, open_run, show
from reki_ray.core.progress import Reporter
from reki_ray.errors import ConfigError
from reki_ray.store.versions import VersionStore, store_of

ExpectedOption = Annotated[
    int | None,
    typer.Option(help="Do so only if this version is served: sent twice, it is done once."),
]

app = typer.Typer()
experiments = typer.Typer(help="Divide users between published versions.", no_args_is_help=True)
app.add_typer(experiments, name="experiment")


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
            help="New events, Parquet or CSV; without, events that were kept before are taken in."
        ),
    ] = None,
    items: Annotated[Path | None, typer.Option(help="New or changed items.")] = None,
    users: Annotated[Path | None, typer.Option(help="New or changed users.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in new events, ask about clusters that drifted, publish a new version."""
    # Imports Ray and torch.
    from reki_ray.data.inbox import BatchFiles
    from reki_ray.stages import update

    loaded, opened = open_run(config, workspace)
    files = BatchFiles(events, items, users) if events or items or users else None
    done = update.update(loaded, files, Reporter(opened))
    show(update.render(done), done.model_dump(mode="json"), as_json=as_json)


@app.command("versions")
def show_versions(
    config: ConfigOption, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Show the published versions, and which of them is served."""
    from reki_ray.store import admin as versions  # not needed by other commands

    found = versions.versions(_store(config, workspace))
    show(versions.render(found), found.model_dump(mode="json"), as_json=as_json)


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="Number of the version to serve.")],
    config: ConfigOption,
    expected: ExpectedOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a version from now on; a running service turns to it without a restart."""
    from reki_ray.store import admin as versions  # not needed by other commands

    found = versions.promote(_store(config, workspace), version, expected=expected)
    show(versions.render(found), found.model_dump(mode="json"), as_json=as_json)


@app.command()
def rollback(
    config: ConfigOption,
    expected: ExpectedOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the version that was promoted before the present one."""
    from reki_ray.store import admin as versions  # not needed by other commands

    found = versions.rollback(_store(config, workspace), expected=expected)
    show(versions.render(found), found.model_dump(mode="json"), as_json=as_json)


@app.command()
def compact(
    config: ConfigOption,
    version: Annotated[
        int | None, typer.Argument(help="A version in layers; default: the served one.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version that is stored in layers as one whole version, and serve that."""
    from reki_ray.store import admin as versions  # not needed by other commands

    found = versions.compact(_store(config, workspace), version)
    show(versions.render(found), found.model_dump(mode="json"), as_json=as_json)


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
    from reki_ray.store import admin as versions  # not needed by other commands

    loaded, opened = open_run(config, workspace)
    done = versions.export(store_of(loaded, opened), version, Reporter(opened))
    show(versions.render_export(done), done.model_dump(mode="json"), as_json=as_json)


@experiments.command("start")
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
    """Start an experiment, or change the shares or versions of the one that runs."""
    from reki_ray.experiments import experiment  # not needed by other commands

    loaded, opened = open_run(config, workspace)
    found = experiment.start_experiment(
        store_of(loaded, opened).root,
        name,
        dict(_variant(text) for text in variants),
        kept_versions=loaded.serve.kept_versions,
    )
    show(experiment.render(found), found.model_dump(mode="json"), as_json=as_json)


@experiments.command("stop")
def stop_experiment(
    config: ConfigOption, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """End the running experiment: everybody gets the promoted version again."""
    from reki_ray.experiments import experiment  # not needed by other commands

    found = experiment.stop_experiment(_store(config, workspace).root)
    show(experiment.render(found), found.model_dump(mode="json"), as_json=as_json)


@app.command("ab")
def compare_variants(  # one argument an option
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

    found = analysis.ab(
        _store(config, workspace).root,
        name,
        since=since,
        window=window,
        clicks=[part.strip() for part in clicks.split(",")],
    )
    show(analysis.render(found), found.model_dump(mode="json"), as_json=as_json)


def _store(config: Path, workspace: str | None) -> VersionStore:
    return store_of(*open_run(config, workspace))


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
