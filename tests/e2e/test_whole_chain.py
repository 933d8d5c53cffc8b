"""All stages by the command a user types, with real Ray; the LLM alone is scripted."""

from __future__ import annotations

import asyncio
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.flows.graph_client import GraphClient
from deployments.flows.score import RecommendFlow
from deployments.graph_args import StoreAccess
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.item_lists import Reranker, Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer
from deployments.schemas import RecommendRequest
from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.stage import STAGE_NAMES
from reki_ray.core.workspace import Workspace
from reki_ray.store.versions import VersionStore
from tests.conftest import TinyConfig
from tests.evaluation.test_report import CONTRACT, keys_of
from tests.support.page_checks import MISTAKES

REKI = str(Path(sys.executable).parent / "reki")


def reki(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REKI, *arguments, "--config", str(config)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def config(tiny_config: TinyConfig) -> RekiConfig:
    return tiny_config(
        train={"arms": ["base", "fair_base", "title_text", "history_text", "reki_c"]}
    )


@pytest.fixture
def file(config: RekiConfig, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.mark.timeout(900)  # nine stages, each with its start of Ray, on a machine that may be busy
def test_runs_all_stages_then_skips_them(config: RekiConfig, file: Path) -> None:
    first = reki(file, "run", "--json")
    assert first.returncode == 0, first.stderr
    check_report(json.loads(first.stdout), config)
    check_tables(Workspace(config.root))
    asyncio.run(check_recommendations(Path(config.root) / "publish"))

    second = reki(file, "run", "--json")
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("unchanged, skipped") == len(STAGE_NAMES) - 1
    content = json.loads(second.stdout)
    assert all(stage["skipped"] for stage in content["stages"])
    assert content["arms"] == json.loads(first.stdout)["arms"]

    finished = reki(file, "status")
    assert "All stages are done" in finished.stdout
    assert f"Report: {Path(config.root).resolve()}/report.html" in finished.stdout

    plain = reki(file, "report")
    assert plain.returncode == 0, plain.stderr
    assert "/v1/score" in plain.stdout
    assert "history_text" in plain.stdout


def check_report(content: dict[str, Any], config: RekiConfig) -> None:
    for part, keys in CONTRACT.items():
        assert keys <= keys_of(content[part]), part
    assert [arm["arm"] for arm in content["arms"]] == list(config.train.arms)
    for stage in content["stages"]:
        assert not stage["skipped"]
    [extract] = [s for s in content["stages"] if s["name"] == "extract"]
    assert extract["rows_in"] == extract["rows_out"] + extract["dead"] > 0
    assert content["serving"]["max_score_difference"] <= 1e-5
    assert content["serving"]["example"]["response"]["scores"]


def check_tables(workspace: Workspace) -> None:
    for side, ids in (("users", schema.USER_ID), ("items", schema.ITEM_ID)):
        table = schema.USERS if side == "users" else schema.ITEMS
        known = sorted(workspace.read_table(table)[ids].to_pylist())
        for vectors in (
            schema.CLUSTERS[side],  # type: ignore[index]
            schema.REPRESENTATIONS[side],  # type: ignore[index]
        ):
            assert sorted(workspace.read_table(vectors)[schema.ID].to_pylist()) == known
    knowledge = workspace.read_table(schema.KNOWLEDGE)
    assert set(knowledge[schema.SUBJECT_KIND].to_pylist()) == {"user_cluster", "item_cluster"}
    assert knowledge.schema == schema.KNOWLEDGE_SCHEMA
    page = workspace.local_path("report.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))
    assert not MISTAKES.search(shown), MISTAKES.findall(shown)
    assert workspace.exists("publish/CURRENT")


async def check_recommendations(root: Path) -> None:
    """The parts of the graph on what was published: unseen items with their titles."""
    access, version = StoreAccess(publish_root=str(root)), VersionStore(root).current()
    parts = Lookup(access), Scorer(access, 4), Retriever(access), Reranker(access)
    flow = RecommendFlow(GraphClient(*parts), 30.0, 100, GatewayMetrics("replica"))
    for user in ("u3", "nobody"):
        asked = RecommendRequest(user_id=user, k=7)
        found = await flow.recommend(asked, version)
        profile = VersionStore(root).open().profile(user)
        assert len(set(found.item_ids)) == 7
        assert not set(found.item_ids) & set(profile.item_ids if profile else ())
        assert all("film" in (title or "") for title in found.titles)
        assert found.scores.scores == sorted(found.scores.scores, reverse=True)
        assert not found.scores.degraded
    for part in parts:
        part.close()


def report_of_mode(config: RekiConfig, folder: Path) -> dict[str, Any]:
    """The report after all stages of a configuration."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    done = reki(path, "run", "--json")
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.slow
def test_individual_mode_reaches_the_report(tiny_config: TinyConfig, tmp_path: Path) -> None:
    config = tiny_config(
        extract={"mode": "individual"}, train={"arms": ["fair_base", "reki_i"], "epochs": 1}
    )
    content = report_of_mode(config, tmp_path)
    assert content["extraction"]["prompts"] == 100
    assert {s["source"] for s in content["serving"]["example"]["response"]["scores"]} == {
        "individual"
    }


@pytest.mark.slow
def test_blended_knowledge_reaches_the_report(tiny_config: TinyConfig, tmp_path: Path) -> None:
    config = tiny_config(
        extract={"mode": "blend", "min_interactions": 0},
        train={"arms": ["fair_base", "reki_blend"], "epochs": 1},
    )
    content = report_of_mode(config, tmp_path)
    assert [arm["arm"] for arm in content["arms"]] == ["fair_base", "reki_blend"]
    assert content["extraction"]["prompts"] > 100  # one an id, and one a cluster
