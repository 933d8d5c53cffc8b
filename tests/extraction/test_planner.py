"""What prompts show after an update: the latest interactions, and of the run none after the cut."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, cast

import pytest

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.data.inbox import BatchFiles, Inbox, write_round
from reki_ray.data.leak_guard import before_cut
from reki_ray.encoding.shards import user_texts
from reki_ray.extraction.plan_table import PLAN, keep
from reki_ray.extraction.planner import _plan_shard, prompting
from reki_ray.extraction.shards import cut_into_shards
from reki_ray.stages import ingest
from tests.conftest import TinyConfig

LATER = 2_000_000
SHOWN = 10


@pytest.fixture
def config(tiny_config: TinyConfig) -> RekiConfig:
    return tiny_config(
        prompts={"max_history": SHOWN},
        split={"prompt_history": 8},
        extract={"engine": {"kind": "scripted"}, "mode": "individual"},
        train={"arms": ["fair_base"]},
    )


@pytest.fixture
def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> Workspace:
    """A run whose plan is written."""
    ingest.run(config, workspace, reporter)
    plan(config, workspace)
    return workspace


def plan(config: RekiConfig, workspace: Workspace) -> dict[tuple[str, str], str]:
    """Write the plan of a workspace, in this process; returns what each prompt shows."""
    wording, render = prompting(config, workspace), cast(Any, _plan_shard)._function
    for number, shard in enumerate(cut_into_shards(workspace, config.extract.mode)):
        render(wording, None, shard, workspace.location, f"part-{number:06d}")
    rows = workspace.read_table(PLAN).to_pylist()
    return {(row[schema.SUBJECT_KIND], row[schema.SUBJECT_ID]): row["body"] for row in rows}


def updated(
    config: RekiConfig, run: Workspace, earlier: Workspace, folder: Path, events: range
) -> Workspace:
    """A round with these events of u0, which have an item of their own each."""
    folder.mkdir()
    with (folder / "events.csv").open("w", newline="") as file:
        rows = [["u0", f"n{number}", 5, LATER + number] for number in events]
        csv.writer(file).writerows([["user_id", "item_id", "rating", "timestamp"], *rows])
    lines = [f"n{number},New film {number},Drama\n" for number in events]
    (folder / "items.csv").write_text("".join(["item_id,title,genre\n", *lines]))
    inbox = Inbox(run, Workspace(run.local_path("live")))
    inbox.add(BatchFiles(folder / "events.csv", folder / "items.csv"), config.data)
    current = Workspace(folder / "round")
    write_round(inbox.merged(), current)
    keep(earlier, current, {})
    return current


def test_a_prompt_of_an_update_shows_the_latest_interactions(
    config: RekiConfig, run: Workspace, tmp_path: Path
) -> None:
    first = updated(config, run, run, tmp_path / "first", range(6))
    prompts = plan(config, first)
    shown = [line for line in prompts["user", "u0"].splitlines() if line.startswith("- ")]
    assert len(shown) == SHOWN
    assert shown[-6:] == [f"- New film {number}: 5" for number in range(6)]
    second = updated(config, run, first, tmp_path / "second", range(6, 40))
    prompts = plan(config, second)
    shown = [line for line in prompts["user", "u0"].splitlines() if line.startswith("- ")]
    assert shown == [f"- New film {number}: 5" for number in range(30, 40)]


def test_a_single_id_is_asked_about_again_when_much_is_new(
    config: RekiConfig, run: Workspace, tmp_path: Path
) -> None:
    before = plan(config, run)
    few = updated(config, run, run, tmp_path / "few", range(1))
    after = plan(config, few)
    assert {key: after[key] for key in before} == before  # one of a dozen lines
    more = updated(config, run, few, tmp_path / "more", range(1, 5))
    after = plan(config, more)
    changed = {key for key in before if after[key] != before[key]}
    assert changed == {("user", "u0")}
    drift = config.cluster.drift.model_copy(update={"moved_share": 1.0})
    cluster = config.cluster.model_copy(update={"drift": drift})
    never = config.model_copy(update={"cluster": cluster})
    assert plan(never, more)["user", "u0"] == before["user", "u0"]


def test_a_first_run_shows_all_that_is_before_the_cut_and_nothing_after(
    config: RekiConfig, run: Workspace
) -> None:
    cuts = run.read_table(schema.CUTS)
    visible = before_cut(run.read_table(schema.INTERACTIONS), cuts)
    titles = {row["item_id"]: row["title"] for row in run.read_table(schema.ITEMS).to_pylist()}
    for (kind, user), body in plan(config, run).items():
        if kind != "user":
            continue
        shown = [line[2:].rpartition(": ")[0] for line in body.splitlines() if line[:2] == "- "]
        events = [row for row in visible.to_pylist() if row["user_id"] == user]
        assert shown == [titles[row["item_id"]] for row in events]


def test_source_texts_of_users_hold_the_latest_interactions(
    config: RekiConfig, run: Workspace, tmp_path: Path
) -> None:
    current = updated(config, run, run, tmp_path / "first", range(40))
    users = current.read_table(schema.USERS)
    visible = before_cut(current.read_table(schema.INTERACTIONS), current.read_table(schema.CUTS))
    texts = user_texts(users, visible, current.read_table(schema.ITEMS), config.prompts)
    text = texts[users["user_id"].to_pylist().index("u0")]
    assert text.endswith("; ".join(f"New film {number}: 5" for number in range(30, 40)) + ".")
