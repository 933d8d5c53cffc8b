"""Every source gives the same tables; each knows its own format's pitfalls."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray.config import DataConfig
from reki_ray.data.raw_tables import DataSource, MappedTable
from reki_ray.data.sources import open_source
from reki_ray.data.validation import check_interactions, check_items, check_users
from reki_ray.errors import DataError
from reki_ray.schema import (
    ATTRIBUTES,
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    ITEMS_SCHEMA,
    LABEL,
    RATING,
    TEXT,
    TITLE,
    USER_ID,
    USERS_SCHEMA,
)

Write = Callable[[Path], dict[str, Any]]


def write_movielens_100k(folder: Path) -> dict[str, Any]:
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t20\t4\t881250949\n2\t10\t2\t881250950\n"
    )
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tMisérables, Les\t1995\tDrama Children's\n20\tunkonwn\tunkonwn\tunknown\n"
    )
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t24\tM\ttechnician\t85711\n2\t7\tF\tother\t94043\n"
    )
    return {"kind": "movielens_100k", "path": folder}


def write_movielens_1m(folder: Path) -> dict[str, Any]:
    (folder / "ratings.dat.gz").write_bytes(
        gzip.compress(b"1::20::4::978300760\n2::10::2::978302109\n")
    )
    (folder / "movies.dat").write_bytes(
        b"10::Mis\xe9rables, Les (1995)::Drama|Children's\n20::X (2001) redux::Action\n"
    )
    (folder / "users.dat").write_text("1::M::18::17::48067\n2::F::1::10::70072\n")
    return {"kind": "movielens_1m", "path": folder}


COLUMNS = {
    "user_id": "uid",
    "item_id": "iid",
    "title": "name",
    "text": "about",
    "item_attributes": ["genre"],
    "user_attributes": ["gender"],
}


def write_csv(folder: Path) -> dict[str, Any]:
    (folder / "events").mkdir()
    (folder / "events" / "1.csv").write_text("uid,iid,rating,timestamp\n1,20,4,100\n")
    (folder / "events" / "2.csv").write_text("uid,iid,rating,timestamp\n2,10,2,200\n")
    (folder / "items.csv").write_text(
        'iid,name,genre,about\n10,"Misérables, Les",Drama|Children\'s,"two\nlines"\n20,X,,\n'
    )
    (folder / "users.csv").write_text("uid,gender\n1,M\n2,F\n")
    return {
        "kind": "csv",
        "interactions": str(folder / "events"),
        "items": str(folder / "items.csv"),
        "users": str(folder / "users.*"),
        "columns": COLUMNS,
    }


def write_parquet(folder: Path) -> dict[str, Any]:
    tables: dict[str, dict[str, Any]] = {
        "events-1": {"uid": [1], "iid": [20], "rating": [4.0], "timestamp": [100]},
        "events-2": {"uid": [2], "iid": [10], "rating": [2.0], "timestamp": [200]},
        "items": {
            "iid": [10, 20],
            "name": ["Misérables, Les", "X"],
            "genre": [["Drama", "Children's"], None],
            "about": ["two\nlines", None],
        },
        "users": {"uid": [1, 2], "gender": ["M", "F"]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return {
        "kind": "parquet",
        "interactions": str(folder / "events-*.parquet"),
        "items": str(folder / "items.parquet"),
        "users": str(folder / "users.parquet"),
        "columns": COLUMNS,
    }


WRITERS: list[Write] = [write_movielens_100k, write_movielens_1m, write_csv, write_parquet]


def data_config(source: dict[str, Any], **keys: object) -> DataConfig:
    return DataConfig.model_validate({"source": source, **keys})


def users_of(source: DataSource) -> MappedTable:
    users = source.users()
    assert users is not None
    return users


@pytest.mark.parametrize("write", WRITERS)
def test_contract_all_rows_pass_the_checks(tmp_path: Path, write: Write) -> None:
    config = data_config(write(tmp_path))
    source = open_source(config)
    items, users = check_items(source.items()), check_users(users_of(source))
    interactions = check_interactions(
        source.interactions(),
        config,
        source.timestamp_unit,
        users=users.rows[USER_ID].combine_chunks(),
        items=items.rows[ITEM_ID].combine_chunks(),
    )
    for checked, schema in (
        (items, ITEMS_SCHEMA),
        (users, USERS_SCHEMA),
        (interactions, INTERACTIONS_SCHEMA),
    ):
        assert checked.rejected == ()
        assert checked.rows.cast(schema).num_rows == checked.rows_in == 2
    assert items.rows[ITEM_ID].to_pylist() == ["10", "20"]
    assert "Misérables, Les" in items.rows[TITLE][0].as_py()
    assert dict(items.rows[ATTRIBUTES][0].as_py())["genre"] == ["Drama", "Children's"]
    assert interactions.rows[USER_ID].to_pylist() == ["1", "2"]
    assert interactions.rows[LABEL].to_pylist() == [1, 0]


@pytest.mark.parametrize("write", WRITERS)
def test_contract_identity_follows_the_content(tmp_path: Path, write: Write) -> None:
    source = open_source(data_config(write(tmp_path)))
    before = source.identity()
    assert source.identity() == before
    changed = sorted(p for p in tmp_path.rglob("*") if p.is_file())[0]
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert source.identity() != before


@pytest.mark.parametrize("write", WRITERS)
def test_contract_a_missing_file_is_named(tmp_path: Path, write: Write) -> None:
    tree = write(tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        path.unlink()
    source = open_source(data_config(tree))
    for read in (source.items, source.users, source.interactions, source.identity):
        with pytest.raises(DataError) as caught:
            read()
        assert str(tmp_path) in caught.value.where


def test_the_packaged_data_are_identified_without_fetching_them() -> None:
    identity = open_source(data_config({"kind": "movielens_100k"})).identity()
    assert isinstance(identity, dict)
    assert set(identity) == {"package", "version", "sha256"}


def test_movielens_100k_buckets_ages_and_drops_unknown_values(tmp_path: Path) -> None:
    source = open_source(data_config(write_movielens_100k(tmp_path)))
    users = users_of(source).columns[ATTRIBUTES].to_pylist()
    assert [dict(u) for u in users] == [
        {"gender": ["M"], "age": ["18-24"], "occupation": ["technician"]},
        {"gender": ["F"], "age": ["Under 18"], "occupation": ["other"]},
    ]
    items = source.items().columns[ATTRIBUTES].to_pylist()
    assert dict(items[0])["decade"] == ["1990s"]
    assert items[1] == []


def test_movielens_1m_splits_the_year_and_keeps_the_title_whole(tmp_path: Path) -> None:
    source = open_source(data_config(write_movielens_1m(tmp_path)))
    items = source.items()
    assert items.columns[TITLE].to_pylist() == ["Misérables, Les (1995)", "X (2001) redux"]
    first, second = (dict(row) for row in items.columns[ATTRIBUTES].to_pylist())
    assert first["year"] == ["1995"]
    assert "year" not in second  # only a year at the end is the year of release
    users = [dict(row) for row in users_of(source).columns[ATTRIBUTES].to_pylist()]
    assert users[1] == {"gender": ["F"], "age": ["Under 18"], "occupation": ["K-12 student"]}


def test_movielens_1m_reads_films_in_latin_1_and_in_utf_8(tmp_path: Path) -> None:
    tree = write_movielens_1m(tmp_path)
    source = open_source(data_config(tree))
    original = source.items().columns[TITLE].to_pylist()
    films = (tmp_path / "movies.dat").read_bytes().decode("latin-1")
    (tmp_path / "movies.dat").write_text(films, encoding="utf-8")
    assert source.items().columns[TITLE].to_pylist() == original


def test_movielens_1m_quarantines_unknown_codes(tmp_path: Path) -> None:
    tree = write_movielens_1m(tmp_path)
    (tmp_path / "users.dat").write_text("1::M::17::3::1\n2::F::18::99::1\n")
    checked = check_users(users_of(open_source(data_config(tree))))
    assert checked.reasons() == {"unknown age code": 1, "unknown occupation code": 1}


def test_own_files_keep_descriptions(tmp_path: Path) -> None:
    items = open_source(data_config(write_csv(tmp_path))).items()
    assert items.columns[TEXT].to_pylist() == ["two\nlines", ""]
    assert items.raw.location(1).endswith("items.csv:4")


def test_a_ready_label_overrides_the_rating(tmp_path: Path) -> None:
    tree = write_csv(tmp_path)
    (tmp_path / "clicks.csv").write_text("uid,iid,timestamp,liked\n1,20,100,0\n2,10,200,true\n")
    tree["interactions"] = str(tmp_path / "clicks.csv")
    tree["columns"] = {**COLUMNS, "rating": None, "label": "liked"}
    config = data_config(tree)
    source = open_source(config)
    checked = check_interactions(
        source.interactions(), config, "s", users=None, items=pa.array(["10", "20"])
    )
    assert checked.rows.select([RATING, LABEL]).to_pylist() == [{RATING: None, LABEL: 0}]
    assert checked.reasons() == {"label is neither 0 nor 1": 1}


def test_a_bare_interaction_is_a_positive_click(tmp_path: Path) -> None:
    tree = write_csv(tmp_path)
    tree["columns"] = {**COLUMNS, "rating": None}
    config = data_config(tree)
    source = open_source(config)
    checked = check_interactions(
        source.interactions(), config, "s", users=None, items=pa.array(["10", "20"])
    )
    assert checked.rows[LABEL].to_pylist() == [1, 1]
    assert checked.rows[RATING].null_count == 2


def test_a_folder_s_hidden_and_marker_files_are_no_data(tmp_path: Path) -> None:
    tree = write_csv(tmp_path)
    for name in ("_SUCCESS", ".part.csv", "notes.txt"):
        (tmp_path / "events" / name).write_text("no data")
    assert open_source(data_config(tree)).interactions().raw.rows_in == 2


def damage_footer(content: bytes) -> bytes:
    return content[:-6] + b"\xff\xff" + content[-4:]


def damage_page(content: bytes) -> bytes:
    return content[:4] + b"\xff" * 24 + content[28:]


def empty(content: bytes) -> bytes:
    return content[:0]


@pytest.mark.parametrize("damage", [damage_footer, damage_page, empty])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    source = open_source(data_config(write_parquet(tmp_path)))
    file = tmp_path / "events-2.parquet"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError) as caught:
        source.interactions()
    assert caught.value.where == str(file)


def test_a_missing_parquet_column_is_named_with_those_present(tmp_path: Path) -> None:
    tree = write_parquet(tmp_path)
    tree["columns"] = {**COLUMNS, "rating": "stars"}
    with pytest.raises(DataError, match="missing: stars; the file has uid, iid, rating, timestamp"):
        open_source(data_config(tree)).interactions()


def test_parquet_strings_that_are_not_utf8_are_quarantined(tmp_path: Path) -> None:
    tree = write_parquet(tmp_path)
    broken = pa.array([b"Good", b"B\xe9d", b"Fine"]).view(pa.string())
    genres = pa.array([b"a", b"b", b"\xff"]).view(pa.string())
    table = pa.table({"iid": [1, 2, 3], "name": broken, "genre": genres, "about": ["", "", ""]})
    pq.write_table(table, tmp_path / "items.parquet")
    checked = check_items(open_source(data_config(tree)).items())
    assert checked.reasons() == {"wrong encoding": 2}
    assert checked.rows[ITEM_ID].to_pylist() == ["1"]
    assert "B\\\\xe9d" in checked.rejected[0].raw
    assert checked.rejected[0].location.endswith("items.parquet#2")
