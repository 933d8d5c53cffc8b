"""Which files a place means: none that is hidden, all of a folder, none of a table with a log."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray.data.data_files import find_files, left_out
from reki_ray.data.parquet import read_parquet
from reki_ray.data.raw_tables import identify_files
from reki_ray.errors import DataError

SUFFIXES = (".parquet", ".csv")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, place: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_files(str(folder / place), SUFFIXES)]


@pytest.mark.parametrize("place", ["", "*", "**/*.parquet", "[ab]*"])
def test_what_is_hidden_at_any_depth_is_no_data(tmp_path: Path, place: str) -> None:
    data = ["a/1.parquet", "a/_day=1/2.parquet", "b.parquet/part-0.parquet"]
    touch(tmp_path, *data)
    touch(tmp_path, "_temporary/0/x.parquet", ".ipynb_checkpoints/x.parquet", "a/._x.parquet")
    touch(tmp_path, "b.parquet/_temporary/0/x.parquet", "a/.b/c/x.parquet", "a/_x.parquet")
    touch(tmp_path, "_SUCCESS", "a/.part-0.parquet.crc", "a/notes.txt")
    assert found(tmp_path, place) == data


def test_what_systems_and_office_leave_beside_the_data_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "$RECYCLE.BIN/1.csv", "lost+found/1.csv", "#recycle/1.csv", "@eaDir/1.csv")
    touch(tmp_path, "~$a.csv", "System Volume Information/1.csv")
    touch(tmp_path, "#1.csv", "$a.csv", "a/lost.csv")
    assert found(tmp_path, "") == found(tmp_path, "*") == ["#1.csv", "$a.csv", "a/lost.csv"]
    assert left_out(str(tmp_path), SUFFIXES) == ""


@pytest.mark.parametrize("other", ["part-00001", "b.txt", "b.csv.snappy", "x/a.dat"])
def test_files_that_a_folder_has_beside_its_data_are_told(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "a.csv", other, "_SUCCESS", ".b.txt.crc")
    assert found(tmp_path, "") == ["a.csv"]
    hint = left_out(str(tmp_path), SUFFIXES)
    assert f": {Path(other).name};" in hint
    assert str((tmp_path / other).parent) in hint
    for place in ("a.csv", "*.csv", "**/*"):  # names all that there is, or what is meant
        assert left_out(str(tmp_path / place), SUFFIXES) == ""
    touch(tmp_path, *(f"c{number}.txt" for number in range(9)))
    assert "and 5 more" in left_out(str(tmp_path), SUFFIXES)


def test_a_hidden_folder_that_is_named_is_meant(tmp_path: Path) -> None:
    touch(tmp_path, "_data/1.csv", ".b/_c/2.csv")
    assert found(tmp_path, "_data") == found(tmp_path, "_data/*.csv") == ["_data/1.csv"]
    assert found(tmp_path, ".b/_c/*") == [".b/_c/2.csv"]
    with pytest.raises(DataError, match="no such file"):
        found(tmp_path, ".b/*")


def test_a_glob_takes_files_and_the_folders_that_other_programs_write(tmp_path: Path) -> None:
    touch(
        tmp_path, "1.csv", "2.csv/part-0.csv", "2.csv/_SUCCESS", "2.csv/x/part-1.CSV", "users.tsv"
    )
    assert found(tmp_path, "*.csv") == ["1.csv", "2.csv/part-0.csv", "2.csv/x/part-1.CSV"]
    assert found(tmp_path, "users.*") == ["users.tsv"]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "far/1.csv", "near/2.csv")
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "loop").symlink_to(tmp_path / "near")
    assert found(tmp_path, "near") == ["near/2.csv", "near/link/1.csv"]


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/00000-ab.metadata.json", "Iceberg"),
        ("_versions/1.manifest", "Lance"),
        ("snapshot/LATEST", "Paimon"),
        ("_spark_metadata/0", "Spark streaming"),
    ],
)
@pytest.mark.parametrize(
    "place", ["table", "table/data", "table/data/*.parquet", "*", "table/data/day=1/1.parquet"]
)
def test_a_table_with_a_log_is_refused_from_wherever_it_is_named(
    tmp_path: Path, mark: str, kind: str, place: str
) -> None:
    touch(tmp_path, f"table/{mark}", "table/data/1.parquet", "table/data/day=1/1.parquet")
    with pytest.raises(DataError, match=kind) as caught:
        find_files(str(tmp_path / place), SUFFIXES)
    assert caught.value.where == str(tmp_path / "table")
    assert "Write its current rows" in caught.value.todo


@pytest.mark.parametrize("place", ["near", "near/day=1", "near/1.parquet", "near/*"])
def test_links_into_a_table_with_a_log_are_refused(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "table/_delta_log/0.json", "table/day=1/1.parquet", "near/2.parquet")
    (tmp_path / "near" / "day=1").symlink_to(tmp_path / "table" / "day=1")
    (tmp_path / "near" / "1.parquet").symlink_to(tmp_path / "table" / "day=1" / "1.parquet")
    with pytest.raises(DataError, match="Delta Lake") as caught:
        find_files(str(tmp_path / place), SUFFIXES)
    assert caught.value.where == str(tmp_path / "table")
    assert found(tmp_path, "near/2.parquet") == ["near/2.parquet"]


@pytest.mark.parametrize(
    "folder",
    [
        *("base_0000005", "base_0000005_v0000017", "delta_0000006_0000006"),
        *("delta_0000006_0000006_0001", "delete_delta_0000006_0000006_0000"),
        "day=1/delta_0000001_0000005_v0000022",
    ],
)
def test_transactional_tables_of_hive_are_refused(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"table/{folder}/bucket_00000.parquet", "near/1.parquet")
    for place in ("table", f"table/{folder}", "*"):
        with pytest.raises(DataError, match="Hive ACID"):
            find_files(str(tmp_path / place), SUFFIXES)
    assert found(tmp_path, "near") == ["near/1.parquet"]


def test_folders_of_days_are_no_tables_of_hive(tmp_path: Path) -> None:
    days = ["base_20200101/1.csv", "delta_20200101_20200201/1.csv", "delta_1/1.csv"]
    touch(tmp_path, *days)
    assert found(tmp_path, "") == sorted(days)


def test_a_place_without_files_says_from_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file") as caught:
        find_files("data/items.csv", SUFFIXES)
    assert caught.value.where == f"data/items.csv in {tmp_path}"
    touch(tmp_path, "data/items.csv")
    assert find_files("data/items.csv", SUFFIXES) == [tmp_path / "data/items.csv"]


@pytest.mark.parametrize("place", ["a\0b", "~nobody-of-this-name/x"])
def test_places_that_cannot_be_are_refused(place: str) -> None:
    with pytest.raises(DataError):
        find_files(place, SUFFIXES)


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "1.csv", "closed/2.csv")
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="Permission denied"):
        find_files(str(tmp_path), SUFFIXES)


def test_parts_without_rows_are_left_out_whatever_their_types(tmp_path: Path) -> None:
    parts = [
        pa.table({"id": pa.array(["a"]).dictionary_encode(), "n": [1]}),
        pa.table({"id": pa.nulls(0), "n": pa.array([], pa.string())}),
        pa.table({}),
        pa.table({"id": ["b"], "n": [2.0]}),
    ]
    paths = [tmp_path / f"{number}.parquet" for number in range(len(parts))]
    for path, table in zip(paths, parts, strict=True):
        pq.write_table(table, path)
    raw = read_parquet("items", paths, ["id", "n"])
    assert raw.rows.to_pydict() == {"id": ["a", "b"], "n": [1, 2]}
    assert raw.location(1) == f"{paths[3]}#1"
    with pytest.raises(DataError, match="columns are missing"):
        read_parquet("items", paths[2:3], ["id"])


def test_the_year_9999_of_spark_does_not_wrap_around(tmp_path: Path) -> None:
    never = pa.array([253_402_214_400], pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"t": never}), path, use_deprecated_int96_timestamps=True)
    raw = read_parquet("items", [path], ["t"])
    assert raw.rows["t"].cast(pa.timestamp("s")).cast(pa.int64()).to_pylist() == [253_402_214_400]


def test_the_identity_of_a_file_is_its_content_whatever_its_size_and_place(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    with path.open("wb") as file:
        file.write(b"id,title\n1,A\n")
        file.truncate(70 * 2**20)
    before = identify_files([path])
    (tmp_path / "copy").mkdir()
    shutil.copy2(path, tmp_path / "copy" / path.name)
    assert identify_files([tmp_path / "copy" / path.name]) == before
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(33 * 2**20 + 5)
        file.write(b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert identify_files([path]) != before
