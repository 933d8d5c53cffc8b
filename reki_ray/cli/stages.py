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
    names,
    open_run,
    show,
)
from reki_ray.cli.views import health, published
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
    """Run all stages; finished, unchanged ones are skipped."""
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
    ("extract", "Ask the LLM all prompts that have no answer yet."),
    ("encode", "Encode the answers."),
    ("train", "Train the backbone with HEIN, and its control arms."),
    ("report", "Write report.json and report.html."),
):
    _stage_command(_name, _text)


@app.command()
def publish(
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    arm: Annotated[
        Arm | None,
        typer.Option(help="Publish this arm as another version, beside that of the run."),
    ] = None,
    promote: Annotated[
        bool,
        typer.Option(help="Serve the version from now on; --no-promote keeps the served one."),
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

    versions = publish_arm(*run, Reporter(run[1]), arm, promote=promote)
    show(published.versions_table(versions), versions, as_json=as_json)


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917  # one argument per option
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
    """Measure arms on the test split; named arms that are not trained are trained first."""
    from reki_ray.cli.views import run_report  # imports matplotlib
    from reki_ray.evaluation.comparison import METRICS

    lists = {"arms": arms, "backbones": backbones, "rerankers": rerankers, "seeds": seeds}
    train = {key: names(listed) for key, listed in lists.items() if listed is not None}
    loaded = load_config(config, workspace=workspace, train=train)
    stages = [*(pipeline.select(only="train") if train else ()), *pipeline.select(only="evaluate")]
    opened = Workspace(loaded.root)
    pipeline.run_stages(loaded, stages, Reporter(opened), force=frozenset(force or []))
    content = opened.read_json(METRICS)
    show(run_report.arm_tables(content, loaded.evaluate.confidence), content, as_json=as_json)


def _run_stages(
    run: tuple[RekiConfig, Workspace], stages: Any, force: list[str] | None, *, as_json: bool
) -> None:
    config, workspace = run
    pipeline.run_stages(config, stages, Reporter(workspace), force=frozenset(force or []))
    if any(stage.name == "report" for stage in stages):
        from reki_ray.cli.views import run_report  # imports matplotlib

        content = workspace.read_json(REPORT_JSON)
        show(run_report.report_text(content, workspace), content, as_json=as_json)
    else:
        state = status.read(workspace)
        show(health.status_view(state), state, as_json=as_json)
