"""Commands of `reki` for experiments on published versions."""

from __future__ import annotations

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
from reki_ray.errors import ConfigError
from reki_ray.store.versions import store_of

app = typer.Typer()
group = typer.Typer(help="Divide users between published versions.", no_args_is_help=True)
app.add_typer(group, name="experiment")


@group.command("start")
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
        store_of(loaded, opened).root,
        name,
        dict(_variant(text) for text in variants),
        kept_versions=loaded.serve.kept_versions,
    )
    show(published.experiment_table(started), started, as_json=as_json)


@group.command("stop")
def stop_experiment(
    config: ConfigOption, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """End the running experiment: all users get the promoted version again."""
    from reki_ray.experiments import experiment  # not needed by other commands

    stopped = experiment.stop_experiment(open_store(config, workspace).root)
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
        open_store(config, workspace).root, name, since=since, window=window, clicks=names(clicks)
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
