"""The workspace publishes a stage's output whole or not at all."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from reki_ray import schema
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.errors import ConfigError, DataError, EngineError

CUTS = pa.table({schema.CUT: [3, 4], schema.USER_ID: ["a", "b"]})


def test_table_comes_back_in_its_schema(stored: Workspace) -> None:
    stored.write_table(schema.CUTS, CUTS)
    found = stored.read_table(schema.CUTS)
    assert found.schema == schema.CUTS_SCHEMA
    assert found.to_pylist() == [{"user_id": "a", "cut": 3}, {"user_id": "b", "cut": 4}]


def test_parts_are_read_in_name_order(stored: Workspace) -> None:
    stored.write_table(schema.CUTS, CUTS.slice(1), part="part-2")
    stored.write_table(schema.CUTS, CUTS.slice(0, 1), part="part-1")
    assert stored.read_table(schema.CUTS)[schema.USER_ID].to_pylist() == ["a", "b"]


def test_vectors_keep_their_dimension(stored: Workspace) -> None:
    vectors = pa.table(
        {
            schema.ID: ["a"],
            schema.FACTOR: [schema.WHOLE_ANSWER],
            schema.VECTOR: pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
            schema.SOURCE: ["individual"],
        }
    ).cast(schema.vectors_schema(2))
    stored.write_table(schema.REPRESENTATIONS["users"], vectors)
    assert stored.read_table(schema.REPRESENTATIONS["users"]).schema == schema.vectors_schema(2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (CUTS.drop_columns([schema.CUT]), "columns are missing: cut"),
        (pa.table({schema.USER_ID: ["a", None], schema.CUT: [1, 2]}), "holds 1 nulls"),
        (pa.table({schema.USER_ID: ["a"], schema.CUT: ["x"]}), "do not fit the schema"),
    ],
)
def test_rows_outside_the_schema_are_refused(
    stored: Workspace, table: pa.Table, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        stored.write_table(schema.CUTS, table)
    assert not stored.has_table(schema.CUTS)


def test_missing_and_damaged_tables_say_which_stage_writes_them(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="Run `reki ingest` first"):
        workspace.read_table(schema.CUTS)
    workspace.write_table(schema.CUTS, CUTS)
    workspace.local_path(schema.CUTS.path, "part-00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="damaged"):
        workspace.read_table(schema.CUTS)


def test_failed_stage_leaves_the_old_output(stored: Workspace) -> None:
    with stored.replacing("ingest") as scratch:
        scratch.write_table(schema.CUTS, CUTS)
    stored.record("ingest", StageEntry("one"))

    def fail() -> None:
        with stored.replacing("ingest") as scratch:
            scratch.write_table(schema.CUTS, CUTS.slice(0, 1))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert stored.read_table(schema.CUTS).num_rows == 2
    assert stored.stages()["ingest"].fingerprint == "one"
    assert not stored.exists(".scratch-ingest")


def test_new_output_replaces_the_old_one_whole(stored: Workspace) -> None:
    with stored.replacing("ingest") as scratch:
        scratch.write_table(schema.CUTS, CUTS, part="old")
    with stored.replacing("ingest") as scratch:
        scratch.write_table(schema.CUTS, CUTS.slice(0, 1), part="new")
    assert stored.read_table(schema.CUTS).num_rows == 1


def test_manifest_entry_is_gone_while_output_is_exchanged(stored: Workspace) -> None:
    with stored.replacing("ingest") as scratch:
        scratch.write_table(schema.CUTS, CUTS)
    stored.record("ingest", StageEntry("one"))
    with stored.replacing("ingest") as scratch:
        scratch.write_table(schema.CUTS, CUTS)
    assert "ingest" not in stored.stages()


def test_a_remote_workspace_has_no_local_path() -> None:
    with pytest.raises(ConfigError, match="local disk"):
        Workspace("memory://run").local_path("ingest")


@pytest.mark.parametrize(
    ("root", "problem"),
    [("gs://bucket/run", "gcsfs"), ("nowhere://run", "Protocol not known")],
)
def test_a_filesystem_that_is_not_there_is_a_config_error(root: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        Workspace(root)
    assert caught.value.where == root
    assert "Install" in caught.value.todo


def use(workspace: Workspace) -> None:
    with workspace.lock(), workspace.replacing("ingest") as scratch:
        scratch.write_table(schema.CUTS, CUTS)


@pytest.mark.parametrize(
    "work",
    [
        use,
        lambda w: w.write_table(schema.CUTS, CUTS),
        lambda w: w.write_json("report.json", {}),
        lambda w: w.record("ingest", StageEntry("one")),
    ],
)
@pytest.mark.parametrize("root", ["/sys/reki", "/proc/reki", "file/run", "file"])
def test_a_workspace_that_cannot_be_written_is_an_engine_error(
    tmp_path: Path, root: str, work: Callable[[Workspace], None]
) -> None:
    (tmp_path / "file").touch()
    workspace = Workspace(tmp_path / root)
    with pytest.raises(EngineError, match="the workspace cannot be") as caught:
        work(workspace)
    assert workspace.location in caught.value.where
    assert "--workspace" in caught.value.todo
    with Reporter(workspace, quiet=True).task("a sign of life is no work"):
        pass


def test_errors_of_a_remote_filesystem_s_own_are_engine_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoCredentialsError(Exception):
        """As botocore has it."""

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError

    remote = Workspace("memory://refused")
    for name in ("exists", "open", "pipe_file", "makedirs", "ls", "rm"):
        monkeypatch.setattr(type(remote.filesystem), name, refuse)
    for work in (lambda: use(remote), remote.stages, lambda: remote.parts(schema.CUTS)):
        with pytest.raises(EngineError, match="NoCredentialsError"):
            work()


def test_documents_are_never_half_written(stored: Workspace) -> None:
    stored.write_json("report.json", {"value": 1})
    with pytest.raises(TypeError):
        stored.write_json("report.json", {"value": object()})
    assert stored.read_json("report.json") == {"value": 1}


def test_unknown_manifest_format_is_refused(stored: Workspace) -> None:
    stored.write_json("manifest.json", {"format": 99, "stages": {}})
    with pytest.raises(DataError, match="format 99"):
        stored.stages()


def test_second_run_on_one_workspace_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, release))
    other.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(ConfigError, match="another run is working"),
            Workspace(tmp_path).lock(),
        ):
            pass
    finally:
        release.set()
        other.join(60)
    with Workspace(tmp_path).lock():
        assert other.exitcode == 0


def _hold(root: str, ready: object, release: object) -> None:
    with Workspace(root).lock():
        ready.set()  # type: ignore[attr-defined]
        release.wait(60)  # type: ignore[attr-defined]
