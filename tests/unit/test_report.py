"""The report keeps its contract and shows every arm, also where figures are missing."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.evaluation import report
from reki_ray.evaluation.comparison import METRICS
from reki_ray.progress import Reporter
from reki_ray.workspace import REPORT_HTML, REPORT_JSON, StageEntry, Workspace

CONTRACT: dict[str, Any] = {
    "dataset": {"name", "users", "items", "interactions", "samples"},
    "stages": {"name", "seconds", "rows_in", "rows_out", "dead", "skipped"},
    "extraction": {
        "engine",
        "model",
        "mode",
        "prompts",
        "prompt_tokens",
        "generated_tokens",
        "tokens_per_second",
        "cache_hits",
        "dead",
    },
    "arms": {
        "arm",
        "backbone",
        "seeds",
        "auc",
        "auc_ci",
        "logloss",
        "gauc",
        "calibration",
        "delta_auc",
        "delta_ci",
        "slices",
    },
    "serving": {"candidates", "requests", "p50_ms", "p99_ms", "requests_per_second"},
}
VERDICTS = (
    "din: reki_c against title_text: +0.0150 [+0.0100, +0.0200], ahead",
    "din: reki_c against reki_c_shuffled: +0.0000 [-0.0100, +0.0100], not apart",
)


def keys_of(part: Any) -> set[str]:
    return set(part[0] if isinstance(part, list) else part)


def arm(name: str, auc: float, cold: float | None) -> dict[str, Any]:
    piece = {"samples": 9, "auc": cold, "delta_auc": None, "delta_ci": None}
    return {
        "arm": name,
        "backbone": "din",
        "seeds": [0, 1],
        "auc": auc,
        "auc_ci": [auc - 0.01, auc + 0.01],
        "logloss": 0.6,
        "gauc": 0.65,
        "calibration": {
            "error": 0.0123,
            "ratio": 1.0456,
            "bins": [
                {"samples": 5, "predicted": 0.2, "observed": 0.25},
                {"samples": 4, "predicted": 0.7, "observed": 0.75},
            ],
        },
        "delta_auc": auc - 0.7,
        "delta_ci": [auc - 0.71, auc - 0.69],
        "slices": dict.fromkeys(("all", "cold_items", "cold_users", "new_users"), piece),
    }


def control(name: str, low: float, high: float) -> dict[str, Any]:
    middle = (low + high) / 2
    return {
        "backbone": "din",
        "arm": "reki_c",
        "control": name,
        "delta_auc": middle,
        "delta_ci": [low, high],
        "apart": low > 0,
        "slices": {},
    }


def reranked(name: str, arm: str | None, delta: float | None) -> dict[str, Any]:
    bounds = None if delta is None else [delta - 0.01, delta + 0.01]
    by_cutoff = dict.fromkeys(("1", "3", "5", "7", "10"), 0.4321)
    return {
        "reranker": name,
        "arm": arm,
        "seeds": [0, 1],
        "lists": 77,
        "ndcg": by_cutoff,
        "map": by_cutoff,
        "ndcg_7_ci": [0.42, 0.44],
        "map_7_ci": [0.42, 0.44],
        "delta_ndcg_7": delta,
        "delta_ci": bounds,
        "delta_initial_ndcg_7": delta,
        "delta_initial_ci": bounds,
        "delta_map_7": delta,
        "delta_map_7_ci": bounds,
        "per_seed": [],
    }


def with_rerankers(workspace: Workspace) -> None:
    """Add what the evaluation writes where rerankers are trained."""
    content = workspace.read_json(METRICS)
    content["reranking"] = [
        reranked("initial_order", None, None),
        reranked("prm", "fair_base", 0.0),
        reranked("prm", "reki_c", 0.0321),
    ]
    entry = control("title_text", 0.01, 0.02)
    entry["delta_ndcg_7"] = entry.pop("delta_auc")
    entry["reranker"] = "prm"
    del entry["backbone"]
    content["reranking_controls"] = [entry]
    workspace.write_json(METRICS, content)


@pytest.fixture
def finished(workspace: Workspace) -> Workspace:
    details: dict[str, dict[str, Any]] = {
        "ingest": {
            "dataset": {
                "name": "run",
                "users": 4,
                "items": 5,
                "interactions": 20,
                "samples": {"train": 8, "valid": 1, "test": 1},
            }
        },
        "cluster": {"users": {"clusters": 2, "size_list": [3, 1]}, "items": {"size_list": [5]}},
        "extract": dict.fromkeys(CONTRACT["extraction"], 7),
        "train": {"samples_per_second": 12_345.0},
        "publish": {"version": 1, "arm": "reki_c"},
        "evaluate": {},
        "serve": {
            **dict.fromkeys(CONTRACT["serving"], 3.0),
            "latencies_ms": [1.0, 2.0, 9.0],
            "example": {
                "request": {"user_id": "1", "candidates": ["7", "8", "9", "6", "5"]},
                "response": {"scores": [{"item_id": i, "score": 0.5} for i in "78965"]},
            },
        },
    }
    for name, figures in details.items():
        workspace.record(name, StageEntry("f", seconds=1.0, details=figures))
    arms = [arm("base", 0.69, None), arm("fair_base", 0.7, 0.6), arm("reki_c", 0.7, 0.61)]
    controls = [control("title_text", 0.01, 0.02), control("reki_c_shuffled", -0.01, 0.01)]
    workspace.write_json(METRICS, {"arms": arms, "controls": controls})
    return workspace


@pytest.fixture
def config(workspace: Workspace) -> RekiConfig:
    return RekiConfig.model_validate(
        {
            "name": "run",
            "workspace": workspace.root,
            "data": {"source": {"kind": "movielens_100k"}},
        }
    )


def test_has_every_key_of_the_contract(
    finished: Workspace, config: RekiConfig, reporter: Reporter
) -> None:
    report.run(config, finished, reporter)
    content = finished.read_json(REPORT_JSON)
    for part, keys in CONTRACT.items():
        assert keys <= keys_of(content[part]), part
    assert set(content["dataset"]["samples"]) == set(schema.SPLITS)
    assert [stage["name"] for stage in content["stages"]] == [
        "ingest",
        "cluster",
        "extract",
        "train",
        "publish",
        "evaluate",
        "serve",
    ]


def test_page_is_self_contained_and_shows_arms_and_plots(
    finished: Workspace, config: RekiConfig, reporter: Reporter
) -> None:
    report.run(config, finished, reporter)
    page = finished.local_path(REPORT_HTML).read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "src=" not in page
    for name in ("base", "fair_base", "reki_c", "p99", "0.7000 [0.6900, 0.7100]", *VERDICTS):
        assert name in page
    assert page.count("<td>0.0123</td><td>1.0456</td>") == 3
    assert page.count("<td>0.200 / 0.250</td><td>0.700 / 0.750</td>") == 3
    assert "<th>bin 2</th></tr>" in page


def test_terminal_shows_the_table_and_the_scored_request(
    finished: Workspace, config: RekiConfig
) -> None:
    stream = io.StringIO()
    content = report.gather(config, finished)
    Console(file=stream, width=160).print(report.render_text(content, finished))
    text = stream.getvalue()
    for part in (
        *VERDICTS,
        "/v1/score",
        '"user_id": "1"',
        "fair_base",
        "12,345 samples/s",
        "mean of 2 seeds",
        "2 further",
    ):
        assert part in text


def test_rerankers_are_shown_beside_the_initial_order(
    finished: Workspace, config: RekiConfig, reporter: Reporter
) -> None:
    shown = ("prm", "0.4321", "+0.0321 [+0.0221, +0.0421]", "initial_order", "77")
    ahead = "prm: reki_c against title_text: +0.0150 [+0.0100, +0.0200], ahead"
    report.run(config, finished, reporter)
    before = finished.local_path(REPORT_HTML).read_text(encoding="utf-8")
    assert "Reranking" not in before
    with_rerankers(finished)
    report.run(config, finished, reporter)
    assert len(finished.read_json(REPORT_JSON)["reranking"]) == 3
    page = finished.local_path(REPORT_HTML).read_text(encoding="utf-8")
    stream = io.StringIO()
    content = report.gather(config, finished)
    Console(file=stream, width=160).print(report.render_text(content, finished))
    for text in (page, stream.getvalue()):
        for part in (*shown, ahead):
            assert part in text


def test_missing_figures_are_shown_as_missing() -> None:
    assert report.interval(None, None) == "-"
    assert report.interval(0.01, None, signed=True) == "+0.0100"
    assert report.interval(0.01, [-0.01, 0.03], signed=True) == "+0.0100 [-0.0100, +0.0300]"
