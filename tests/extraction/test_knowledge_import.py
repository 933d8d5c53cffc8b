"""Knowledge from elsewhere: each entry is taken over or counted; a source replaces itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray import schema
from reki_ray.cli.views.published import import_table
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.extraction import import_report
from reki_ray.extraction.import_report import import_knowledge
from reki_ray.extraction.knowledge_import import IMPORTED, identify, imported_address, read_imported
from reki_ray.schema import SubjectKind
from tests.conftest import TinyConfig

ITEMS = [f"m{i}" for i in range(20)]
USERS = [f"u{i}" for i in range(10)]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    opened = Workspace(tmp_path / "workspace")
    fill(opened)
    return opened


def fill(workspace: Workspace) -> None:
    nothing = [None] * len(ITEMS)
    rows = {"item_id": ITEMS, "title": ITEMS, "attributes": nothing, "text": nothing}
    workspace.write_table(schema.ITEMS, pa.table({**rows, "image": nothing}))
    nothing = [None] * len(USERS)
    rows = {"user_id": USERS, "attributes": nothing, "text": nothing, "image": nothing}
    workspace.write_table(schema.USERS, pa.table(rows))
    clusters = {
        "id": ITEMS,
        "cluster_id": [f"c{i % 3}" for i in range(len(ITEMS))],
        "similarity": [1.0] * len(ITEMS),
        "method": ["hdbscan"] * len(ITEMS),
    }
    workspace.write_table(schema.CLUSTERS["items"], pa.table(clusters))


def json_file(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def parquet_file(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def texts(workspace: Workspace) -> dict[tuple[str, str, str], str]:
    rows = read_imported(workspace).to_pylist()
    found = {(r["subject_kind"], r["subject_id"], r["factor"]): r["text"] for r in rows}
    assert len(found) == len(rows)
    return found


def files(workspace: Workspace) -> list[str]:
    folder = Path(workspace.path(IMPORTED.path))
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- formats ---------------------------------------------------------------------------------
WANTED = {("item", "m1", "*"): "a crime drama", ("item", "m2", "*"): "a comedy"}
FORMATS: dict[str, Callable[[Path], Path]] = {
    "texts": lambda folder: json_file(
        folder / "a.json", {"m1": "a crime drama", "m2": " a comedy \n"}
    ),
    "prompts and answers": lambda folder: json_file(
        folder / "item.klg",
        {
            "m1": {"prompt": "Tell me of the film m1", "answer": "a crime drama"},
            "m2": {"answer": "Say what m2 is\na comedy", "prompt": "Say what m2 is\nnow"},
        },
    ),
    "parquet": lambda folder: parquet_file(
        folder / "a.parquet", id=["m1", "m2"], text=["a crime drama", "a comedy"], more=[1, 2]
    ),
    "parquet without an ending": lambda folder: parquet_file(
        folder / "a", id=pa.array(["m1", "m2"]).dictionary_encode(), text=[*WANTED.values()]
    ),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_becomes_rows_of_knowledge(
    workspace: Workspace, tmp_path: Path, form: str
) -> None:
    file = FORMATS[form](tmp_path)
    report = import_knowledge(workspace, file)
    assert (report.kind, report.entries, report.imported) == ("item", 2, 2)
    assert texts(workspace) == WANTED
    rows = read_imported(workspace)
    assert rows.schema == schema.KNOWLEDGE_SCHEMA
    row = rows.to_pylist()[0]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (row["engine"], row["model"], row["revision"]) == ("imported", file.name, digest[:12])
    assert row["prompt_hash"] == imported_address("item", "m1", file.name, digest[:12])
    assert (row["prompt_tokens"], row["generated_tokens"]) == (0, 0)


def test_factors_come_from_their_column(workspace: Workspace, tmp_path: Path) -> None:
    file = parquet_file(
        tmp_path / "a.parquet",
        id=["m1", "m1", "m2", "m3"],
        text=["crime", "tense", "whole", "all"],
        factor=["genre", "mood", None, " "],
    )
    import_knowledge(workspace, file)
    assert texts(workspace) == {
        ("item", "m1", "genre"): "crime",
        ("item", "m1", "mood"): "tense",
        ("item", "m2", "*"): "whole",
        ("item", "m3", "*"): "all",
    }
    prompt_keys = read_imported(workspace, columns=["prompt_hash", "subject_id"]).to_pylist()
    assert list(prompt_keys[0]) == ["prompt_hash", "subject_id"]
    assert len({row["prompt_hash"] for row in prompt_keys}) == 3


def test_numbers_serve_as_ids(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "numbers")
    users = {"user_id": ["1", "2"], "attributes": [None] * 2, "text": [None] * 2}
    workspace.write_table(schema.USERS, pa.table({**users, "image": [None] * 2}))
    file = parquet_file(tmp_path / "a.parquet", id=[1, 2], text=["one", "two"])
    import_knowledge(workspace, file)
    assert texts(workspace) == {("user", "1", "*"): "one", ("user", "2", "*"): "two"}


# --- entries ---------------------------------------------------------------------------------
def test_every_entry_is_imported_or_counted(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(
        '{"m1": "old", "m2": " \\n", "m3": 5, "m4": null, "m5": {"prompt": "x"}, "m6": ["a"],'
        ' "stranger": "text", "m1": "new", "m7": "\\u0000", "\\ud800m8": "x",'
        ' "m9": "fine \\ud83d\\udc4d <data>m1</data> \\ud800end", "m1": "newest"}'
    )
    report = import_knowledge(workspace, file, kind="item")
    assert report.entries == 12
    assert (report.imported, report.duplicate, report.blank) == (2, 2, 2)
    assert (report.malformed, report.unknown) == (4, 2)
    assert report.examples["unknown"] == ["stranger", "m8"]
    assert report.examples["duplicate"] == ["m1", "m1"]
    assert report.examples["malformed"] == ["m3", "m4", "m5", "m6"]
    assert texts(workspace) == {
        ("item", "m1", "*"): "newest",
        ("item", "m9", "*"): "fine \U0001f44d  end",
    }
    assert import_table(report)


def test_batches_do_not_matter(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [*ITEMS, "stranger", *ITEMS[:5]]
    said = [f"text {i}" if i % 7 else " " for i in range(len(ids))]
    file = parquet_file(tmp_path / "a.parquet", id=ids, text=said)
    whole = import_knowledge(workspace, file)
    kept = texts(workspace)
    Path(workspace.path(IMPORTED.path, files(workspace)[0])).unlink()
    monkeypatch.setattr(import_report, "BATCH_ROWS", 3)
    assert import_knowledge(workspace, file) == whole
    assert texts(workspace) == kept


def test_clusters_are_known_by_their_cluster_id(workspace: Workspace, tmp_path: Path) -> None:
    file = json_file(tmp_path / "a.json", {"c1": "films", "c9": "none"})
    report = import_knowledge(workspace, file)
    assert (report.kind, report.imported, report.unknown) == ("item_cluster", 1, 1)


def test_an_unclear_kind_must_be_named(workspace: Workspace, tmp_path: Path) -> None:
    both = json_file(tmp_path / "a.json", {"m1": "film", "u1": "viewer"})
    with pytest.raises(ConfigError, match=r"item and user.*--kind"):
        import_knowledge(workspace, both)
    assert import_knowledge(workspace, both, kind="user").imported == 1
    neither = json_file(tmp_path / "b.json", {"x": "film"})
    with pytest.raises(ConfigError, match="no id"):
        import_knowledge(workspace, neither)


# --- refusals --------------------------------------------------------------------------------
def test_strict_imports_nothing_where_an_id_is_unknown(
    workspace: Workspace, tmp_path: Path
) -> None:
    file = json_file(tmp_path / "a.json", {"m1": "film", "stranger": "who"})
    with pytest.raises(DataError, match="stranger"):
        import_knowledge(workspace, file, strict=True)
    assert files(workspace) == []
    assert read_imported(workspace).num_rows == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'"m1"', "not a JSON object"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"m1": " "}', "none of 1 entries"),
        (b"PAR1" + b"\x00" * 100, "damaged"),
    ],
)
def test_broken_files_are_refused_as_a_whole(
    workspace: Workspace, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        import_knowledge(workspace, file, kind="item")
    assert files(workspace) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["m1"]}, "missing: text"),
        ({"key": ["m1"], "text": ["x"]}, "missing: id"),
        ({"id": ["m1"], "text": [1]}, "text holds int64"),
        ({"id": [1.5], "text": ["x"]}, "id holds double"),
        ({"id": pa.array([None], pa.string()), "text": ["x"]}, "none of 1"),
        ({"id": ["m1"], "text": pa.array([b"\xff"]).view(pa.string())}, "damaged"),
    ],
)
def test_parquet_of_another_shape_is_refused(
    workspace: Workspace, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    file = parquet_file(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match=message):
        import_knowledge(workspace, file, kind="item")
    assert files(workspace) == []


def test_a_missing_file_and_a_missing_table_say_so(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        import_knowledge(workspace, tmp_path / "none.json", kind="item")
    file = json_file(tmp_path / "a.json", {"c1": "x"})
    with pytest.raises(DataError, match="reki cluster"):
        import_knowledge(workspace, file, kind="user_cluster")


def test_a_failed_import_keeps_the_earlier_one(workspace: Workspace, tmp_path: Path) -> None:
    good = json_file(tmp_path / "a.json", {"m1": "film"})
    import_knowledge(workspace, good, source="s")
    bad = json_file(tmp_path / "b.json", {"m1": "other", "stranger": "who"})
    with pytest.raises(DataError):
        import_knowledge(workspace, bad, source="s", strict=True)
    assert texts(workspace) == {("item", "m1", "*"): "film"}


# --- several imports -------------------------------------------------------------------------
def test_the_same_import_twice_changes_nothing(
    workspace: Workspace, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    config = tiny_config()
    assert identify(config) == []
    file = json_file(tmp_path / "a.json", {"m1": "film", "m2": "other"})
    import_knowledge(workspace, file)
    first = (identify(config), read_imported(workspace))
    import_knowledge(workspace, file)
    assert (identify(config), read_imported(workspace)) == first
    assert json.loads(json.dumps(identify(config))) == first[0]
    assert len(files(workspace)) == 1


def test_a_source_replaces_all_it_said_before(
    workspace: Workspace, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    file = json_file(tmp_path / "a.json", {"m1": "film", "m2": "other"})
    import_knowledge(workspace, file)
    before = identify(tiny_config())
    import_knowledge(workspace, json_file(file, {"m2": "ather", "m3": "third"}))
    assert texts(workspace) == {("item", "m2", "*"): "ather", ("item", "m3", "*"): "third"}
    assert identify(tiny_config()) != before


def test_sources_and_kinds_stand_side_by_side_and_the_latest_counts(
    workspace: Workspace, tmp_path: Path
) -> None:
    kinds: dict[str, SubjectKind] = {"m": "item", "u": "user"}
    for letter, kind in kinds.items():
        file = json_file(tmp_path / "a.json", {f"{letter}1": "one", f"{letter}2": "two"})
        import_knowledge(workspace, file, kind=kind)
    second = json_file(tmp_path / "b.json", {"m1": "better"})
    import_knowledge(workspace, second)
    assert len(files(workspace)) == 3
    assert texts(workspace) == {
        ("item", "m1", "*"): "better",
        ("item", "m2", "*"): "two",
        ("user", "u1", "*"): "one",
        ("user", "u2", "*"): "two",
    }
    # Importing the first again makes it the latest.
    import_knowledge(workspace, json_file(tmp_path / "a.json", {"m1": "one", "m2": "two"}))
    assert texts(workspace)["item", "m1", "*"] == "one"


def test_source_names_of_any_kind_are_kept_apart(workspace: Workspace, tmp_path: Path) -> None:
    for number, source in enumerate(["../../evil", "..-..-evil", "a/b", "x" * 300, "\u4e2d"]):
        file = json_file(tmp_path / "a.json", {f"m{number}": "film"})
        import_knowledge(workspace, file, source=source)
    assert len(files(workspace)) == 5
    assert read_imported(workspace).num_rows == 5


def test_half_written_files_are_never_read(workspace: Workspace, tmp_path: Path) -> None:
    import_knowledge(workspace, json_file(tmp_path / "a.json", {"m1": "film"}))
    scratch = Path(workspace.path(IMPORTED.path, ".import-x"))
    scratch.mkdir()
    (scratch / "drawn.parquet").write_bytes(b"PAR1 half")
    assert read_imported(workspace).num_rows == 1


def test_a_damaged_import_says_what_to_do(workspace: Workspace, tmp_path: Path) -> None:
    import_knowledge(workspace, json_file(tmp_path / "a.json", {"m1": "film"}))
    Path(workspace.path(IMPORTED.path, files(workspace)[0])).write_bytes(b"PAR1 half")
    with pytest.raises(DataError, match="import its source again"):
        read_imported(workspace)


def test_imports_work_on_any_filesystem(tmp_path: Path) -> None:
    workspace = Workspace("memory://import-test")
    fill(workspace)
    import_knowledge(workspace, json_file(tmp_path / "a.json", {"m1": "film"}))
    assert texts(workspace) == {("item", "m1", "*"): "film"}


def test_the_command_reports_and_leaves_with_3_where_strict(
    workspace: Workspace, tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: a\nworkspace: workspace\ndata: {source: {kind: movielens_100k}}\n")
    json_file(tmp_path / "a.json", {"m1": "film", "stranger": "who"})

    def reki(*options: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "reki"), "import-knowledge", "a.json"]
        return subprocess.run(
            [*command, "-c", "c.yaml", *options],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = reki("--strict")
    assert refused.returncode == 3, refused.stderr
    assert "stranger" in refused.stderr
    done = reki("--json", "--kind", "item")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["imported"] == 1
    assert texts(workspace) == {("item", "m1", "*"): "film"}


def test_imported_texts_are_judged_as_answers_are(workspace: Workspace, tmp_path: Path) -> None:
    good = "A crime drama of the nineties about a weary detective and a careful thief."
    texts = {
        "m0": good,
        "m1": "I'm sorry, but I cannot help with that.",
        "m2": "drama action " * 20,
        "m3": "\u3164",
        "m4": "unknown",
        "m5": "<think>a draft</think>" + good,
        "m6": "<think>only a draft",
        "m7": "[insert text here]",
    }
    report = import_knowledge(workspace, json_file(tmp_path / "k.json", texts))
    assert (report.imported, report.refusal, report.loop, report.blank) == (2, 1, 1, 4)
    assert report.examples["refusal"] == ["m1"]
    assert report.examples["loop"] == ["m2"]
    rows = parquet_file(
        tmp_path / "k.parquet", id=["m0", "m1"], text=["crime", "genre"], factor=["genre", "genre"]
    )
    report = import_knowledge(workspace, rows)
    assert (report.imported, report.blank) == (1, 1)
