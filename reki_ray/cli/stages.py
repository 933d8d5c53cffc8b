"""Commands of `reki` that run stages."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reki_ray.cli import status
from reki_ray.cli.options import (
    ConfigOption,
    ForceOption,
    JsonOption,
    WorkspaceOption,
    open_run,
    show,
)
from reki_ray.config import Arm, RekiConfig, load_config
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import REPORT_JSON, Workspace
from reki_ray.stages import pipeline

app = typer.Typer()


@app.command()
def run(
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    until: Annotated[str | None, typer.Option(help="Last stage to run.")] = None,
    force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages; what is done and unchanged is skipped."""
    opened = open_run(config, workspace)
    _run_stages(opened, pipeline.select(until=until), force, as_json=as_json)


def _stage_command(name: str, text: str) -> None:
    def command(
        config: ConfigOption,
        workspace: WorkspaceOption = None,
        force: ForceOption = None,
        as_json: JsonOption = False,
    ) -> None:
        opened = open_run(config, workspace)
        _run_stages(opened, pipeline.select(only=name), force, as_json=as_json)

    app.command(name, help=text)(command)


for _name, _text in (
    ("ingest", "Read, validate and split the data."),
    ("cluster", "Cluster users and items for collective knowledge."),
    ("extract", "Ask the LLM what is not answered yet."),
    ("encode", "Encode the answers."),
    ("train", "Train the backbone with HEIN, and its control arms."),
    ("report", "Write report.json and report.html."),
):
    _stage_command(_name, _text)


@app.command()
def publish(  # one argument an option
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    arm: Annotated[
        Arm | None,
        typer.Option(help="Publish this arm as a further version, beside that of the run."),
    ] = None,
    promote: Annotated[
        bool,
        typer.Option(help="Serve the version from now on; --no-promote leaves what is served."),
    ] = True,
    force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a trained arm, with its augmented vectors, as a new version."""
    run = open_run(config, workspace)
    if arm is None and promote:
        _run_stages(run, pipeline.select(only="publish"), force, as_json=as_json)
        return
    from reki_ray.stages.update import publish_arm  # imports torch
    from reki_ray.store import admin as versions  # not needed by other commands

    found = publish_arm(*run, Reporter(run[1]), arm, promote=promote)
    show(versions.render(found), found.model_dump(mode="json"), as_json=as_json)


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917  # one argument an option
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    arms: Annotated[
        str | None, typer.Option(help="Arms, as fair_base,reki_c; default: train.arms.")
    ] = None,
    backbones: Annotated[
        str | None, typer.Option(help="Backbones, as din,dcnv2; default: train.backbones.")
    ] = None,
    rerankers: Annotated[
        str | None, typer.Option(help="Rerankers, as prm,mir; default: train.rerankers.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, as 0,1,2; default: train.seeds.")
    ] = None,
    force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure arms on the test split; named arms that are not trained yet are trained first."""
    from reki_ray.evaluation import comparison, report  # imports matplotlib

    asked = {
        name: [part.strip() for part in value.split(",")]
        for name, value in (
            ("arms", arms),
            ("backbones", backbones),
            ("rerankers", rerankers),
            ("seeds", seeds),
        )
        if value is not None
    }
    loaded = load_config(config, workspace=workspace, train=asked)
    stages = [*(pipeline.select(only="train") if asked else ()), *pipeline.select(only="evaluate")]
    opened = Workspace(loaded.root)
    pipeline.run_stages(loaded, stages, Reporter(opened), force=frozenset(force or []))
    content = opened.read_json(comparison.METRICS)
    show(report.render_arms(content, loaded.evaluate.confidence), content, as_json=as_json)


def _run_stages(
    run: tuple[RekiConfig, Workspace], stages: Any, force: list[str] | None, *, as_json: bool
) -> None:
    config, workspace = run
    pipeline.run_stages(config, stages, Reporter(workspace), force=frozenset(force or []))
    names = [stage.name for stage in stages]
    found = status.read(workspace)
    if "report" in names:
        from reki_ray.evaluation import report  # imports matplotlib

        content = workspace.read_json(REPORT_JSON)
        show(report.render_text(content, workspace), content, as_json=as_json)
    else:
        show(status.render(found), found.model_dump(mode="json"), as_json=as_json)
