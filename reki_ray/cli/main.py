"""`reki`: thin commands over the pipeline, without logic of their own.

Exit codes: 0 done, 1 a check failed or a fault of reki-ray, 2 wrong use or configuration, 3 bad
data beyond the threshold, 4 engine or cluster unavailable, 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from reki_ray.cli import launch, serve, stages, status, submit
from reki_ray.cli.failures import explain
from reki_ray.cli.options import ConfigOption, JsonOption, WorkspaceOption, names, open_run, show
from reki_ray.cli.views import health, published
from reki_ray.config import Arm, load_config
from reki_ray.core import run_log
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import set_environment
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.schema import SubjectKind

BENCHMARKS: Final = ("accuracy", "cluster", "extract", "serve", "storage", "train")
"""Benchmarks, each a module of the same name in `benchmarks/`."""


class _Commands(TyperGroup):
    """Turns any exception of a command into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _UsageError, BrokenPipeError):
            raise  # Typer's own, and a closed pipe
        except KeyboardInterrupt:
            _say("reki: interrupted; the same command resumes the work")
            raise typer.Exit(130) from None
        except Exception as error:  # noqa: BLE001  # last resort
            failure = explain(error)
            if ctx.params["show_traceback"]:
                _say("".join(traceback.format_exception(error)))
            _say(f"reki: {failure.what}\n  where: {failure.where}\n  what to do: {failure.todo}")
            raise typer.Exit(failure.exit_code) from None


_UsageError: Any = typer.BadParameter.__base__
"""Wrong use of a command, which Typer reports itself; it does not export the type."""

app = typer.Typer(
    cls=_Commands,
    help="Open-world knowledge of an LLM for any recommendation model, extracted offline on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _part in (stages, serve, submit):
    app.add_typer(_part.app)  # without a name: adds its commands, not a group
app.add_typer(launch.app, name="launch")


def main() -> None:
    """Entry point of the command `reki`."""
    _open_streams()
    set_environment()
    logging.basicConfig(level=logging.WARNING, format=run_log.line_format())
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what the terminal cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    app()


def _open_streams() -> None:
    """Open streams that the caller closed, as `>&-` does, before a file takes their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


@app.callback()
def _reki(
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Print the full traceback of an error.")
    ] = False,
) -> None:
    """Options of all commands; `_Commands` reads them."""


def _say(text: str) -> None:
    # Messages quote data: escape its control characters.
    shown = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda c: f"\\x{ord(c[0]):02x}", text)
    Console(stderr=True, soft_wrap=True).print(shown, markup=False, highlight=False)


@app.command("status")
def show_status(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration that names the workspace.")
    ] = None,
    workspace: WorkspaceOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the run ends; with --json a line each.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of a running or finished workspace."""
    if workspace is None:
        if config is None:
            raise ConfigError(
                "no workspace is named",
                where="command line",
                todo="Give --workspace DIR or --config FILE.",
            )
        workspace = load_config(config).root
    if watch:
        health.show_states(status.follow(Workspace(workspace)), as_json=as_json)
        return
    state = status.read(Workspace(workspace))
    show(health.status_view(state), state, as_json=as_json)


@app.command()
def plan(  # noqa: PLR0913, PLR0917  # one argument per option
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    users: Annotated[
        int | None, typer.Option(help="Number of users; default: as in the workspace.")
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="Number of items; default: as in the workspace.")
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(help="Tokens that one engine generates per second; default: as measured."),
    ] = None,
    prefill_tokens_per_second: Annotated[
        float | None,
        typer.Option(help="Prompt tokens that one engine reads per second; default: as measured."),
    ] = None,
    engines: Annotated[
        int | None, typer.Option(help="Engines; default: extract.max_replicas.")
    ] = None,
    requests_per_second: Annotated[
        float | None,
        typer.Option(help="Size the whole service for these requests; default: extraction alone."),
    ] = None,
    refresh_days: Annotated[
        float, typer.Option(help="Days in which all knowledge is to be renewed once.")
    ] = 30.0,
    measure: Annotated[
        bool,
        typer.Option(
            help="Start the engine for about a minute if this machine can run it, and "
            "measure its speed; otherwise, and with --no-measure, extract.speed is assumed."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Estimate extraction before any call: prompts, tokens, GPU hours, money, storage, time."""
    # Imports Ray and a tokenizer.
    from reki_ray.cli.views import plan as view
    from reki_ray.extraction.cost_estimate import estimate

    result = estimate(
        *open_run(config, workspace),
        users=users,
        items=items,
        tokens_per_second=tokens_per_second,
        prefill_tokens_per_second=prefill_tokens_per_second,
        engines=engines,
        requests_per_second=requests_per_second,
        refresh_days=refresh_days,
        measure=measure,
    )
    show(view.render(result), result, as_json=as_json)


@app.command("sweep")
def run_sweep(
    config: ConfigOption,
    vary: Annotated[
        list[str],
        typer.Option(
            help="A setting and its values, as cluster.users.min_cluster_size=4,8,16; repeatable."
        ),
    ],
    workspace: WorkspaceOption = None,
    until: Annotated[
        str, typer.Option(help="cluster: only cluster; evaluate: also extract, train and evaluate.")
    ] = "cluster",
    as_json: JsonOption = False,
) -> None:
    """Vary settings of clustering: calls saved, similarity, sizes and test AUC of each."""
    from reki_ray.cli.views import trials  # imports Ray
    from reki_ray.tuning import sweep

    points = sweep.sweep(load_config(config, workspace=workspace), vary, until, Reporter())
    show(trials.sweep_table(points), points, as_json=as_json)


@app.command()
def tune(  # noqa: PLR0913, PLR0917  # one argument per option
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    backbones: Annotated[
        str | None, typer.Option(help="Backbones, as din,dcnv2; default: train.backbones.")
    ] = None,
    arm: Annotated[Arm, typer.Option(help="What the models see.")] = "fair_base",
    trials: Annotated[
        int | None, typer.Option(help="Settings to try; default: tune.trials.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Trials at a time; default: tune.concurrency.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; default: tune.seed.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the best settings, or a folder for one file per backbone."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search the best settings of each backbone on the validation split; resumes."""
    from reki_ray.cli.views.trials import search_tables  # imports Ray and torch
    from reki_ray.tuning import search

    train: dict[str, Any] = {"arms": list(dict.fromkeys(["fair_base", arm]))}
    if backbones:
        train["backbones"] = names(backbones)
    options = {"trials": trials, "concurrency": concurrency, "seed": seed}
    loaded = load_config(
        config,
        workspace=workspace,
        train=train,
        tune={name: value for name, value in options.items() if value is not None},
    )
    searches = search.search(loaded, arm, Reporter(Workspace(loaded.root)), out=out)
    show(search_tables(searches), searches, as_json=as_json)


@app.command("import-knowledge")
def import_knowledge(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="JSON {id: text}, JSON {id: {prompt, answer}}, or "
            "Parquet with columns id, text and, optionally, factor; a path or a URI.",
        ),
    ],
    config: ConfigOption,
    workspace: WorkspaceOption = None,
    kind: Annotated[
        SubjectKind | None,
        typer.Option(help="What the ids are; detected if they fit only one kind."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Name of the source; default: the file's name.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a file with unknown ids as a whole.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Import knowledge from another source; extraction skips its subjects."""
    from reki_ray.extraction import import_report  # not needed by other commands

    _, opened = open_run(config, workspace)
    report = import_report.import_knowledge(opened, file, kind=kind, source=source, strict=strict)
    show(published.import_table(report), report, as_json=as_json)


@app.command()
def doctor(
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster", help="Also check the running Ray cluster, and each of its nodes."
        ),
    ] = False,
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="Folder or URL that every node must see.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the installation, and explain how to fix it."""
    from reki_ray.cli import doctor as checks  # imports torch, vLLM and Ray

    findings = checks.examine(cluster=cluster, workspace=workspace)
    show(health.findings_table(findings), findings, as_json=as_json)
    raise typer.Exit(checks.exit_code(findings))


@app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run_benchmark(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the benchmark, as extract.")],
) -> None:
    """Run a benchmark of the checkout; its own options follow its name."""
    if name not in BENCHMARKS:
        raise ConfigError(
            f"there is no benchmark {name!r}",
            where="command line",
            todo=f"The benchmarks are {', '.join(BENCHMARKS)}.",
        )
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / f"{name}.py").is_file():
        raise ConfigError(
            "the benchmarks are not part of an installed wheel",
            where=str(root),
            todo="Clone the repository and run `make bench` there.",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    results = importlib.import_module(f"benchmarks.{name}").run(context.args)
    show(str(results), None, as_json=False)
