"""Inputs named by URI: found as on a local disk, fetched once, and again when they change."""

from __future__ import annotations

import gzip
import json
import re
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from reki_ray.config import DataConfig
from reki_ray.core.workspace import Workspace
from reki_ray.data.data_files import find_files, identify_place, left_out
from reki_ray.data.remote_files import RemoteFile, local_copy
from reki_ray.data.sources import open_source
from reki_ray.errors import ConfigError, DataError, EngineError, RekiError
from reki_ray.extraction.import_report import import_knowledge
from reki_ray.schema import ITEM_ID, ITEMS, TITLE
from tests.support.s3_server import BUCKET, FaultProxy

SUFFIXES = (".parquet", ".csv", ".csv.gz")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REKI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Bucket:
    """A folder of its own on the S3 server."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        self._files = s3fs.S3FileSystem(use_listings_cache=False)

    def put(self, name: str, content: bytes = b"") -> None:
        self._files.pipe_file(f"{self.url}/{name}", content)

    def found(self, place: str = "") -> list[str]:
        paths = find_files(f"{self.url}/{place}".rstrip("/"), SUFFIXES)
        start = len(self.url.removeprefix("s3://").split("/"))
        folders = [path.parts[path.parts.index("inputs") + 2 :] for path in paths]
        return ["/".join(parts[start:]) for parts in folders]

    def fetched(self) -> int:
        """Objects that were read since the last call."""
        gets = [path for method, path, _ in self.proxy.requests if method == "GET"]
        self.proxy.requests.clear()
        return len([path for path in gets if "list-type" not in path and "prefix" not in path])


@pytest.fixture
def bucket(proxy: FaultProxy) -> Bucket:
    return Bucket(proxy)


# --- object stores ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("", ["a/1.parquet", "a/_day=1/2.csv", "b.csv"]),
        ("a", ["a/1.parquet", "a/_day=1/2.csv"]),
        ("a/1.parquet", ["a/1.parquet"]),
        ("*", ["a/1.parquet", "a/_day=1/2.csv", "b.csv", "notes.txt"]),
        ("**/*.parquet", ["a/1.parquet"]),
        ("[ab]*", ["a/1.parquet", "a/_day=1/2.csv", "b.csv"]),
        ("notes.txt", ["notes.txt"]),
    ],
)
def test_files_are_found_as_on_a_local_disk(
    bucket: Bucket, tmp_path: Path, place: str, expected: list[str]
) -> None:
    names = ["a/1.parquet", "a/_day=1/2.csv", "b.csv", "notes.txt", "_SUCCESS", ".hidden.csv"]
    names += ["_temporary/0/x.parquet", "a/.b/c/x.csv", "lost+found/1.csv"]
    for name in names:
        bucket.put(name, name.encode())
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_text(name)
    assert bucket.found(place) == expected
    local = find_files(str(tmp_path / "local" / place), SUFFIXES)
    assert [str(path.relative_to(tmp_path / "local")) for path in local] == expected
    remote = find_files(f"{bucket.url}/{place}", SUFFIXES)
    assert [path.read_bytes() for path in remote] == [path.read_bytes() for path in local]
    assert "notes.txt" in left_out(bucket.url, SUFFIXES)


def test_a_file_is_fetched_once_and_again_when_it_changes(bucket: Bucket) -> None:
    place = f"{bucket.url}/items.csv"
    bucket.put("items.csv", b"one")
    bucket.fetched()
    before = identify_place(place, SUFFIXES)
    assert bucket.fetched() == 0
    first = find_files(place, SUFFIXES)
    assert bucket.fetched() == 1
    assert find_files(place, SUFFIXES) == first
    assert bucket.fetched() == 0
    assert first[0].name == "items.csv"
    bucket.put("items.csv", b"two")
    assert identify_place(place, SUFFIXES) != before
    assert find_files(place, SUFFIXES)[0].read_bytes() == b"two"
    assert first[0].read_bytes() == b"one"  # a run that has begun keeps what it reads
    bucket.put("items.csv", b"one")
    assert identify_place(place, SUFFIXES) == before


def test_passing_faults_cost_time_alone(bucket: Bucket) -> None:
    bucket.put("items.csv", b"content")
    bucket.proxy.fail(2, "503", method="GET", path="items.csv")
    assert local_copy(f"{bucket.url}/items.csv").read_bytes() == b"content"


def test_a_file_that_changes_while_it_is_fetched_is_refused(
    bucket: Bucket, own_cache: Path
) -> None:
    bucket.put("items.csv", b"new content")
    stale = RemoteFile(f"{bucket.url}/items.csv", "7-of another time", 7)
    with pytest.raises(DataError, match="changed while it was fetched"):
        stale.fetch()
    assert not [path for path in (own_cache / "inputs").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("t/_delta_log/0.json", "Delta Lake"),
        ("t/.hoodie/x", "Hudi"),
        ("t/metadata/v1.metadata.json", "Iceberg"),
    ],
)
@pytest.mark.parametrize("place", ["t", "t/day=1", "t/day=1/x.parquet", "*", "t/*/*.parquet"])
def test_tables_with_a_log_are_refused(bucket: Bucket, mark: str, kind: str, place: str) -> None:
    bucket.put("t/day=1/x.parquet")
    bucket.put(mark)
    with pytest.raises(DataError, match=kind):
        bucket.found(place)


@pytest.mark.parametrize("place", ["none.csv", "none/", "none*", "*/none/**"])
def test_a_missing_key_is_named(bucket: Bucket, place: str) -> None:
    bucket.put("a.csv")
    with pytest.raises(DataError, match="no such file") as caught:
        find_files(f"{bucket.url}/{place}", SUFFIXES)
    assert caught.value.where == f"{bucket.url}/{place}"


def test_a_place_without_rights_says_which_credentials(bucket: Bucket) -> None:
    bucket.put("a.csv")
    bucket.proxy.fault = lambda method, path: "403"
    with pytest.raises(DataError, match="may not be read") as caught:
        find_files(f"{bucket.url}/a.csv", SUFFIXES)
    assert "AWS_ACCESS_KEY_ID" in caught.value.todo


@pytest.mark.parametrize(
    ("place", "todo"),
    [("gs://bucket/a.csv", r"reki-ray\[gs\]"), ("nowhere://a.csv", "s3, gs, abfs, hf")],
)
def test_a_scheme_that_cannot_be_read_names_the_extra(place: str, todo: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_files(place, SUFFIXES)
    assert re.search(todo, caught.value.todo)


# --- sources ---------------------------------------------------------------------------------
def test_a_run_reads_its_files_from_a_bucket(bucket: Bucket, tiny_data: Path) -> None:
    for name in ("interactions", "items", "users"):
        content = (tiny_data / f"{name}.csv").read_bytes()
        bucket.put(f"{name}/part-0.csv.gz", gzip.compress(content))

    def source(place: str, end: str) -> Any:
        columns = {"item_attributes": ["genre"], "user_attributes": ["gender"]}
        tables = {name: f"{place}/{name}{end}" for name in ("interactions", "items", "users")}
        tree = {"source": {"kind": "csv", "columns": columns, **tables}}
        return open_source(DataConfig.model_validate(tree))

    remote, local = source(bucket.url, ""), source(str(tiny_data), ".csv")
    for table in ("interactions", "items", "users"):
        found, expected = getattr(remote, table)(), getattr(local, table)()
        assert found.raw.rows == expected.raw.rows
        # Rows that are quarantined tell where they came from.
        assert f"{bucket.url.removeprefix('s3://')}/{table}/part-0" in found.raw.location(0)
    assert source(bucket.url, "").identity() == remote.identity() != local.identity()


def test_movielens_may_be_in_a_bucket(bucket: Bucket) -> None:
    bucket.put("ml/ratings.dat.gz", gzip.compress(b"1::2::5::978300760\n"))
    bucket.put("ml/movies.dat", b"2::Heat (1995)::Action\n")
    bucket.put("ml/users.dat", b"1::F::1::10::48067\n")
    tree = {"source": {"kind": "movielens_1m", "path": f"{bucket.url}/ml/"}}
    source = open_source(DataConfig.model_validate(tree))
    assert source.items().columns[TITLE].to_pylist() == ["Heat (1995)"]
    assert len(source.interactions().raw.rows) == 1
    before = source.identity()
    bucket.put("ml/users.dat", b"1::M::1::10::48067\n")
    assert source.identity() != before
    tree = {"source": {"kind": "movielens_100k", "path": f"{bucket.url}/none"}}
    with pytest.raises(DataError, match="no such file") as caught:
        open_source(DataConfig.model_validate(tree)).identity()
    assert caught.value.where.endswith("none/ml-100k.inter")


def test_knowledge_may_be_in_a_bucket(bucket: Bucket, filled: Workspace) -> None:
    key = filled.read_table(ITEMS)[ITEM_ID][0].as_py()
    bucket.put(
        "kar.json", json.dumps({key: "A slow film about a bank and those who rob it."}).encode()
    )
    report = import_knowledge(filled, f"{bucket.url}/kar.json", kind="item")
    assert (report.imported, report.file, report.source) == (
        1,
        f"{bucket.url}/kar.json",
        "kar.json",
    )


def test_file_uris_are_local(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert find_files(f"file://{tmp_path}", SUFFIXES) == [tmp_path / "a.parquet"]
    assert local_copy(f"file://{tmp_path}/a.parquet") == tmp_path / "a.parquet"


# --- http ------------------------------------------------------------------------------------
class Site(ThreadingHTTPServer):
    """Serves one file at every path but a few."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.content, self.headers = b"a,b\n1,2\n", dict[str, str]()
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Page(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.command)
        name = self.path.partition("?")[0].rpartition("/")[2]
        status = {"none.csv": 404, "closed.csv": 403, "broken.csv": 500}.get(name, 200)
        if name == "moved.csv":
            self.send_response(302)
            self.send_header("Location", "/there.csv")
            self.end_headers()
            return
        if name == "signed.csv" and self.command == "HEAD":
            status = 403
        self.send_response(status)
        for key, value in self.server.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.server.content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        yield server
        server.shutdown()


@pytest.mark.parametrize("headers", [{"ETag": '"one"'}, {"Last-Modified": "yesterday"}, {}])
@pytest.mark.parametrize("path", ["data/items.csv?version=1", "moved.csv", "signed.csv?key=1"])
def test_a_page_is_fetched_by_its_etag_time_or_content(
    site: Site, headers: dict[str, str], path: str
) -> None:
    site.headers = headers
    place = site.url(path)
    before = identify_place(place, SUFFIXES)
    (found,) = find_files(place, SUFFIXES)
    assert found.read_bytes() == site.content
    assert found.name == path.partition("?")[0].rpartition("/")[2]
    site.asked.clear()
    assert find_files(place, SUFFIXES) == [found]
    if headers and not path.startswith("signed"):
        assert site.asked == ["HEAD"] * (2 if path == "moved.csv" else 1)
    site.content, site.headers = b"a,b\n1,3\n", dict.fromkeys(headers, "another")
    assert identify_place(place, SUFFIXES) != before
    assert find_files(place, SUFFIXES)[0].read_bytes() == site.content


@pytest.mark.parametrize(
    ("path", "kind", "problem"),
    [
        ("none.csv", DataError, "no such file"),
        ("closed.csv", DataError, "may not be read"),
        ("broken.csv", EngineError, "cannot be fetched"),
    ],
)
def test_pages_that_cannot_be_had_are_named(
    site: Site, path: str, kind: type[RekiError], problem: str
) -> None:
    with pytest.raises(kind, match=problem) as caught:
        find_files(site.url(path), SUFFIXES)
    assert caught.value.where == site.url(path)


def test_a_server_that_is_not_there_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="cannot be fetched"):
        find_files("http://127.0.0.1:1/a.csv", SUFFIXES)
