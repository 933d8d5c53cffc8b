"""The report of a run: report.json for programs, report.html for people.

`report.json` is a contract: keys are added, never renamed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined, select_autoescape

from reki_ray.config import RekiConfig
from reki_ray.config.secrets import shown
from reki_ray.core.formats import address, counted, interval, milliseconds, number
from reki_ray.core.stage import STAGE_NAMES
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.evaluation import plots
from reki_ray.evaluation.comparison import METRICS
from reki_ray.evaluation.report_tables import (
    arm_rows,
    calibration_rows,
    reranking_rows,
    slice_rows,
    stage_rows,
)
from reki_ray.metrics.bootstrap import SEEDS
from reki_ray.prompts.answer_stats import AnswerStats, describe

_SHOWN_SCORES = 3

_STAGE_KEYS = ("seconds", "rows_in", "rows_out", "dead", "skipped")

_EXTRACTION_KEYS = (
    *("engine", "model", "mode", "prompts", "prompt_tokens", "generated_tokens"),
    *("tokens_per_second", "cache_hits", "dead"),
)


def gather(config: RekiConfig, workspace: Workspace) -> dict[str, Any]:
    """Content of report.json; the stages up to evaluate and serve are done.

    Raises:
        DataError: The evaluation's metrics are missing or damaged.
    """
    entries = workspace.stages()
    return {
        "dataset": entries["ingest"].details["dataset"],
        "stages": [
            {"name": name, **{key: getattr(entries[name], key) for key in _STAGE_KEYS}}
            for name in STAGE_NAMES
            if name in entries and name != "report"
        ],
        "extraction": {
            **{key: entries["extract"].details[key] for key in _EXTRACTION_KEYS},
            # Missing in workspaces of earlier releases.
            "answers": entries["extract"].details.get("answers"),
        },
        "clustering": {
            side: {key: value for key, value in figures.items() if key != "size_list"}
            for side, figures in entries["cluster"].details.items()
        },
        "training": {
            "backbones": list(config.train.backbones),
            "rerankers": list(config.train.rerankers),
            "samples_per_second": entries["train"].details["samples_per_second"],
        },
        **workspace.read_json(METRICS),
        "published": entries["publish"].details,
        "serving": {
            key: value for key, value in entries["serve"].details.items() if key != "latencies_ms"
        },
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
        "versions": entries["train"].versions,
        "config": shown(config.model_dump(mode="json")),
    }


def render_html(content: dict[str, Any], entries: dict[str, StageEntry]) -> str:
    """The report as one self-contained page; its plots need figures of the manifest's entries."""
    environment = _Pages(
        loader=PackageLoader("reki_ray.evaluation", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, verdict=verdict, drawn=drawn, diverged=diverged)
    environment.filters["lines"] = lambda cell: str(_shown(cell)).split("\n")
    arms, serving = content["arms"], content["serving"]
    sizes = {side: f.get("size_list") for side, f in entries["cluster"].details.items()}
    return environment.get_template("report.html.j2").render(
        report=content,
        headline=_headline(content),
        arms=arm_rows(arms),
        slices=slice_rows(arms),
        calibration=calibration_rows(arms),
        reranking=reranking_rows(content.get("reranking")),
        extraction=[
            (key.replace("_", " "), number(value))
            for key, value in content["extraction"].items()
            if key != "answers"
        ],
        answers=describe(AnswerStats(**(content["extraction"].get("answers") or {}))),
        stages=stage_rows(content["stages"]),
        example=scored_example(content) if serving.get("example") else None,
        plots={
            "Differences in test AUC": plots.differences(arms, content["controls"]),
            "Predicted and observed click rate": plots.calibration(
                arms, content["published"].get("arm")
            ),
            "Cluster sizes": plots.cluster_sizes({k: v for k, v in sizes.items() if v}),
            "Score latency": plots.latency(entries["serve"].details.get("latencies_ms") or []),
        },
    )


class _Pages(Environment):
    """Templates in which a dotted name is a key, never a method, of a mapping."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Value of `obj.attribute` in a template."""
        if isinstance(obj, Mapping):
            return self.getitem(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Value of `obj[argument]` in a template."""
        if isinstance(obj, Mapping) and argument not in obj:
            return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)


def _shown(value: Any) -> Any:
    """Template filter: a value as text, a dash if it is undefined."""
    if callable(value) and not isinstance(value, Undefined):
        raise TypeError(f"the template prints {value!r}, not a value")
    return "-" if value is None or value != value else value  # noqa: PLR0124  # NaN


def _headline(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures at the top of the page, each with its unit."""
    serving = content["serving"]
    return [
        (number(content["extraction"]["tokens_per_second"]), "generated tokens a second"),
        (number(content["training"]["samples_per_second"]), "training samples a second"),
        (milliseconds(serving["p50_ms"]), f"p50 to score {serving['candidates']} candidates"),
        (milliseconds(serving["p99_ms"]), "p99"),
        (number(serving["requests_per_second"]), "requests a second"),
    ]


def verdict(entry: dict[str, Any]) -> str:
    """An entry of `controls` or `reranking_controls`, an arm against its control, in words."""
    model, metric = (
        ("reranker", "delta_ndcg_7") if "reranker" in entry else ("backbone", "delta_auc")
    )
    difference = f"{interval(entry[metric], entry['delta_ci'], signed=True)}, "
    if entry[metric] is None:
        difference, outcome = "", "not measured"
    elif SEEDS not in entry["ci_over"]:
        outcome = "no verdict from one seed"
    elif not entry["apart"]:
        outcome = "no significant difference"
    else:
        outcome = "ahead" if entry[metric] > 0 else "behind"
    return f"{entry[model]}: {entry['arm']} against {entry['control']}: {difference}{outcome}"


def drawn(entries: Sequence[dict[str, Any]]) -> str:
    """Sources of variance of the intervals of arms or rerankers, in words."""
    several = [SEEDS in entry["ci_over"] for entry in entries if entry["seeds"]]
    if not any(several):
        return "over users and items, of one seed"
    return "over users, items and seeds" + ("" if all(several) else ", where there are several")


def diverged(arms: Sequence[dict[str, Any]], model: str = "backbone") -> list[str]:
    """A line for each arm of `arms` or `reranking` with diverged runs; `model` is a key of them."""
    return [
        f"{arm[model]}: {arm['arm']} diverged with seed {', '.join(map(str, arm['diverged']))}, "
        + ("which is left out of all arms" if arm["seeds"] else "and has no result")
        for arm in arms
        if arm.get("diverged")
    ]


def scored_example(content: dict[str, Any]) -> str:
    """A request and its answer, long lists shortened."""
    example, serve = content["serving"]["example"], content["config"]["serve"]
    request, response = dict(example["request"]), dict(example["response"])
    left_out = len(response["scores"]) - _SHOWN_SCORES
    request["candidates"] = request["candidates"][:_SHOWN_SCORES]
    response["scores"] = response["scores"][:_SHOWN_SCORES]
    more = f"\n# and {counted(left_out, 'further candidate')}" if left_out > 0 else ""
    body = json.dumps(response, indent=2, ensure_ascii=False)
    at = address(serve["host"], serve["port"] or "PORT")
    token = "" if serve["edge"]["allow_anonymous"] else " --oauth2-bearer $REKI_TOKEN"
    return f"curl{token} {at}/v1/score --json '{json.dumps(request)}'\n{body}{more}"
