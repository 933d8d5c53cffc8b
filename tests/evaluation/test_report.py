"""The report keeps its contract and shows every arm, also where figures are missing."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from jinja2 import StrictUndefined, UndefinedError
from rich.console import Console

from reki_ray import schema
from reki_ray.cli.views.run_report import report_text
from reki_ray.config import RekiConfig
from reki_ray.core import formats
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import REPORT_HTML, REPORT_JSON, Workspace
from reki_ray.evaluation import report
from reki_ray.stages import report as report_stage
from tests.support import report_workspace

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
        "ci_over",
        "slices",
    },
    "serving": {"candidates", "requests", "p50_ms", "p99_ms", "requests_per_second"},
}
VERDICTS = (
    "din: reki_c against title_text: +0.0150 [+0.0100, +0.0200], ahead",
    "din: reki_c against reki_c_shuffled: +0.0000 [-0.0100, +0.0100], no significant difference",
)


def keys_of(part: Any) -> set[str]:
    return set(part[0] if isinstance(part, list) else part)


@pytest.fixture
def finished(workspace: Workspace) -> Workspace:
    report_workspace.fill(workspace)
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
    report_stage.run(config, finished, reporter)
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
    report_stage.run(config, finished, reporter)
    page = finished.local_path(REPORT_HTML).read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "src=" not in page
    for name in ("base", "fair_base", "reki_c", "p99", "0.7000 [0.6900, 0.7100]", *VERDICTS):
        assert name in page
    assert page.count(">0.0123</td>") == page.count(">1.0456</td>") == 3
    assert "4 users, 1,682 items, 20 interactions" in page
    assert "and 2 further candidates" in page
    assert page.count("candidates&#34;") == 1


def test_figures_of_a_mapping_are_its_keys_and_never_its_methods() -> None:
    pages = report._Pages(undefined=StrictUndefined, finalize=report._shown)
    counts = {"items": 7, "keys": 8, "values": None, "deeper": {"items": float("nan")}}
    shown = pages.from_string("{{ d.items }} {{ d.keys }} {{ d.values }} {{ d.deeper.items }}")
    assert shown.render(d=counts) == "7 8 - -"
    listed = pages.from_string("{% for key, value in d|items %}{{ key }}{% endfor %}")
    assert listed.render(d=counts) == "itemskeysvaluesdeeper"
    for missing in ("{{ d.get }}", "{{ d.nothing }}", "{{ d['update'] }}"):
        with pytest.raises(UndefinedError, match="has no"):
            pages.from_string(missing).render(d=counts)
    for method in ("{{ name.title }}", "{{ rows.append }}"):
        with pytest.raises(TypeError, match="not a value"):
            pages.from_string(method).render(name="x", rows=[])


def test_what_is_not_defined_is_a_dash_in_page_and_terminal(
    workspace: Workspace, config: RekiConfig, reporter: Reporter
) -> None:
    nothing = [report_workspace.arm(name, None, None) for name in ("fair_base", "reki_c")]
    undefined = report_workspace.control("title_text", 0.0, 0.0)
    undefined |= {"delta_auc": None, "delta_ci": None, "apart": False}
    report_workspace.fill(workspace, nothing, [undefined])
    entries = workspace.stages()
    entries["serve"].details.update(p50_ms=None, latencies_ms=[])
    entries["cluster"].details.update(users={"size_list": []}, items={})
    for name in ("serve", "cluster"):
        workspace.record(name, entries[name])
    report_stage.run(config, workspace, reporter)
    page = workspace.local_path(REPORT_HTML).read_text(encoding="utf-8")
    assert "<svg" not in page
    assert ">-</td>" in page
    assert "<b>-</b>p50" in page
    stream = io.StringIO()
    content = report.gather(config, workspace)
    Console(file=stream, width=160).print(report_text(content, workspace))
    for text in (re.sub("<style>.*?</style>", "", page, flags=re.DOTALL), stream.getvalue()):
        assert not re.search(r"None|\bnan\b|built-in|object at|null", text)
        assert "din: reki_c against title_text: not measured" in text


def test_terminal_shows_the_table_and_the_scored_request(
    finished: Workspace, config: RekiConfig
) -> None:
    stream = io.StringIO()
    content = report.gather(config, finished)
    Console(file=stream, width=160).print(report_text(content, finished))
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
    report_stage.run(config, finished, reporter)
    before = finished.local_path(REPORT_HTML).read_text(encoding="utf-8")
    assert "Reranking" not in before
    report_workspace.add_rerankers(finished)
    report_stage.run(config, finished, reporter)
    assert len(finished.read_json(REPORT_JSON)["reranking"]) == 3
    page = finished.local_path(REPORT_HTML).read_text(encoding="utf-8")
    stream = io.StringIO()
    content = report.gather(config, finished)
    Console(file=stream, width=160).print(report_text(content, finished))
    for text in (page.replace("<small>", " "), stream.getvalue()):  # intervals have a line there
        for part in (*shown, ahead):
            assert part in text


@pytest.mark.parametrize(
    ("host", "port", "command"),
    [
        ("127.0.0.1", 8000, "curl 127.0.0.1:8000/v1/score --json"),
        ("::1", 0, "curl [::1]:PORT/v1/score --json"),
    ],
)
def test_the_shown_request_goes_to_where_the_service_is(
    finished: Workspace, config: RekiConfig, host: str, port: int, command: str
) -> None:
    edge = {"allow_anonymous": True}
    content = report.gather(config, finished)
    content["config"]["serve"] |= {"host": host, "port": port, "edge": edge}
    assert report.scored_example(content).startswith(command)
    edge["allow_anonymous"] = False
    assert "--oauth2-bearer $REKI_TOKEN" in report.scored_example(content)


def test_missing_figures_are_shown_as_missing() -> None:
    assert formats.interval(None, None) == "-"
    assert formats.interval(0.01, None, signed=True) == "+0.0100"
    assert formats.interval(0.01, [-0.01, 0.03], signed=True) == "+0.0100 [-0.0100, +0.0300]"
