"""Dashboards and alerts of launch/monitoring: current, linked, valid, and answered by a service."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.live_graph import PATIENCE, make_config
from tests.support.live_load import BODY
from tests.support.prometheus_server import Prometheus, program, prometheus

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch/monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
SCRAPE = "2s"


@pytest.fixture(scope="module")
def dashboards() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "dashboards.py")))


def test_the_dashboards_in_the_repository_are_current(dashboards: SimpleNamespace) -> None:
    files = {path.stem: path.read_text() for path in (FOLDER / "dashboards").glob("*.json")}
    assert files == {name: dashboards.render(name) for name in dashboards.DASHBOARDS}


def test_grafanas_schema_reads_the_dashboards(dashboards: SimpleNamespace) -> None:
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    for name, (_, panels) in dashboards.DASHBOARDS.items():
        read = Dashboard.from_json(json.loads((FOLDER / f"dashboards/{name}.json").read_text()))
        shown = [[panel.title, *(t.expr for t in panel.targets)] for panel in read.panels or []]  # type: ignore[union-attr]
        assert shown == [[panel.title, *(q.expr for q in panel.queries)] for panel in panels]


def test_every_alert_has_a_runbook_and_is_fired_by_the_rule_tests() -> None:
    runbooks = (ROOT / "docs/how-to/runbooks.md").read_text()
    sections = [heading.lower() for heading in re.findall(r"^## (\w+)$", runbooks, re.MULTILINE)]
    links = [rule["annotations"]["runbook_url"] for rule in RULES]
    assert links == [f"docs/how-to/runbooks.md#{section}" for section in sections]
    assert links == [f"docs/how-to/runbooks.md#{rule['alert'].lower()}" for rule in RULES]
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"]}
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize(
    "arguments",
    [
        ("test", "rules", FOLDER / "alerts_test.yaml"),
        ("check", "config", FOLDER / "prometheus.yaml"),
    ],
)
def test_promtool_agrees(arguments: tuple[Any, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def monitored(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Prometheus, httpx.Client]]:
    """Prometheus, and a client of the service that it scrapes beside an extraction."""
    program("prometheus")
    root = tmp_path_factory.mktemp("monitored")
    VersionStore(root / "publish").publish(store_factory.fill)
    config = make_config(root, gateway_replicas=2, ingress="serve")
    tree = {**config.model_dump(mode="json"), "refresh": {"enabled": True, "poll_seconds": 1}}
    (root / "config.json").write_text(json.dumps(tree))
    with _demo(root / "config.json") as demo:
        scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
        scrape["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
        scrape["rule_files"] = [str(FOLDER / "alerts.yaml")]
        scrape["scrape_configs"][0]["file_sd_configs"] = [{"files": [demo["targets"]]}]
        (root / "prometheus.yaml").write_text(json.dumps(scrape))
        (root / "data").mkdir()
        with (
            prometheus(root / "prometheus.yaml", root / "data") as server,
            httpx.Client(base_url=demo["url"], timeout=30, trust_env=False) as client,
        ):
            yield server, client


@contextlib.contextmanager
def _demo(config: Path) -> Iterator[dict[str, str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.monitored_demo", str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **PATIENCE},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield next(json.loads(line) for line in process.stdout if line.startswith("{"))
    finally:
        process.stdin.close()
        process.wait(120)


@pytest.mark.slow
@pytest.mark.serve
@pytest.mark.timeout(900)
def test_every_query_of_the_dashboards_is_answered(
    monitored: tuple[Prometheus, httpx.Client], dashboards: SimpleNamespace
) -> None:
    server, client = monitored
    queries = [
        query for _, panels in dashboards.DASHBOARDS.values() for p in panels for query in p.queries
    ]
    missing = [query.expr for query in queries if not query.quiet]

    end = time.monotonic() + 300
    while missing and time.monotonic() < end:
        assert client.post("/v1/score", json=BODY).status_code == 200
        event = {"user_id": "u0", "item_id": "m1", "event": "click", "timestamp": int(time.time())}
        taken = client.post("/v1/events", json=[event])
        assert taken.is_success, taken.text
        time.sleep(1)
        missing = [expr for expr in missing if not server.query(expr)]
    assert not missing, "no data: " + "\n".join(missing)
    for query in queries:
        server.query(query.expr)  # those that may be empty must be valid all the same
    gateways = server.query(
        'count(count by (replica) (ray_reki_served_version{deployment="Gateway"}))'
    )
    assert gateways[0]["value"][1] == "2"
    assert {target["health"] for target in server.get("/targets")["activeTargets"]} == {"up"}


@pytest.mark.slow
@pytest.mark.serve
def test_every_alert_is_evaluated_and_a_sound_service_fires_none_of_its_own(
    monitored: tuple[Prometheus, httpx.Client],
) -> None:
    server, _ = monitored
    for rule in RULES:
        server.query(rule["expr"])
    groups = server.get("/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in RULES]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
    assert firing <= {"RekiDeadLetters", "RekiHeadMemory"}  # of the demo, and of the machine
