"""The corridor: order, fingerprints, skip-if-unchanged, staleness."""

from __future__ import annotations

import pickle

import pytest

from reki_ray.config import RekiConfig
from reki_ray.core.imports import load
from reki_ray.core.progress import Reporter
from reki_ray.core.stage import Stage, StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.stages import pipeline

CALLS: list[str] = []


def first(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    CALLS.append("first")
    return StageResult(rows_in=3, rows_out=2, dead=1)


def second(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    CALLS.append("second")
    if config.train.epochs == 13:
        raise DataError("bad luck", where="here", todo="Take another number.")
    return StageResult(rows_in=2, rows_out=2)


@pytest.fixture(autouse=True)
def _two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    stages = (
        Stage("first", f"{__name__}:first", ("split",)),
        Stage("second", f"{__name__}:second", ("train",), ("first",)),
    )
    monkeypatch.setattr(pipeline, "STAGES", stages)
    monkeypatch.setattr(pipeline, "STAGE_NAMES", ("first", "second"))


def config(workspace: Workspace, **sections: object) -> RekiConfig:
    tree = {
        "name": "run",
        "workspace": workspace.root,
        "data": {"source": {"kind": "movielens_100k"}},
        **sections,
    }
    return RekiConfig.model_validate(tree)


def run(config: RekiConfig, reporter: Reporter, force: frozenset[str] = frozenset()) -> list[str]:
    CALLS.clear()
    pipeline.run_stages(config, pipeline.STAGES, reporter, force=force)
    return list(CALLS)


def test_second_run_skips_everything(workspace: Workspace, reporter: Reporter) -> None:
    assert run(config(workspace), reporter) == ["first", "second"]
    assert run(config(workspace), reporter) == []
    assert workspace.stages()["first"].skipped
    assert workspace.stages()["first"].dead == 1


def test_changed_section_runs_its_stage_and_what_follows(
    workspace: Workspace, reporter: Reporter
) -> None:
    run(config(workspace), reporter)
    assert run(config(workspace, train={"epochs": 3}), reporter) == ["second"]
    assert run(config(workspace, split={"seed": 5}), reporter) == ["first", "second"]


def test_force_runs_later_stages_as_well(workspace: Workspace, reporter: Reporter) -> None:
    run(config(workspace), reporter)
    assert run(config(workspace), reporter, frozenset({"first"})) == ["first", "second"]


def test_failed_stage_is_not_done_and_earlier_work_is_kept(
    workspace: Workspace, reporter: Reporter
) -> None:
    with pytest.raises(DataError, match="bad luck"):
        run(config(workspace, train={"epochs": 13}), reporter)
    assert list(workspace.stages()) == ["first"]
    assert run(config(workspace), reporter) == ["second"]


def test_single_stage_needs_its_predecessors(workspace: Workspace, reporter: Reporter) -> None:
    only = pipeline.select(only="second")
    with pytest.raises(ConfigError, match="needs stage first, which is not done"):
        pipeline.run_stages(config(workspace), only, reporter)
    run(config(workspace), reporter)
    with pytest.raises(ConfigError, match="another configuration"):
        pipeline.run_stages(config(workspace, split={"seed": 5}), only, reporter)


def test_unknown_stage_and_import_path_are_named() -> None:
    with pytest.raises(ConfigError, match="no stage 'cook'"):
        pipeline.select(until="cook")
    with pytest.raises(ConfigError, match="cannot import"):
        load("reki_ray.nowhere:run")


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError("what", where="where", todo="todo")))
    assert (error.what, error.where, error.todo) == ("what", "where", "todo")
