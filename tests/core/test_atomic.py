"""Atomic writes: whole or not there, synced in order, and nothing is written in another way."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from reki_ray.core import atomic
from reki_ray.core.workspace import Workspace

ROOT = Path(__file__).parents[2]

OTHERWISE = {
    # What they write is moved into its place as a whole, by them or by who calls them.
    "reki_ray/core/downloads.py": {"convert_gguf"},
    "reki_ray/models/artifact.py": {"save"},
    "reki_ray/retrieval/builder.py": {"write_retrieval"},
    "reki_ray/retrieval/index.py": {"build_index"},
    "reki_ray/store/hash_index.py": {"_write_rows", "keep_rows"},
    "reki_ray/store/lmdb.py": {"LmdbVectors.export_side"},
    # The second one appends a line that costs only time where it is lost.
    "reki_ray/store/manifest.py": {"write_manifest", "note_verified"},
    "reki_ray/data/remote_files.py": {"_stream"},
    "reki_ray/events/shipping.py": {"Shipping._bring_segment"},
    "reki_ray/store/deltas.py": {"write_compacted"},
    "reki_ray/store/files.py": {"LocalFiles.scratch"},
    "reki_ray/training/runs.py": {"write_run"},
    # Ray copies the folder, and names the checkpoint when the copy is whole.
    "reki_ray/training/checkpoint.py": {"write_state"},
    # Object stores: a put is atomic. A link is there or not.
    "reki_ray/core/storage.py": {"Storage.writing", "Storage.create"},
    "reki_ray/core/workspace.py": {"Workspace.link_caches"},
    "reki_ray/store/remote.py": {
        *("RemoteFiles.place.upload", "RemoteFiles.scratch", "RemoteFiles._fetch"),
        *("RemoteFiles._copy", "_drop"),
    },
    # A log is appended to; its lines tell whether they are whole.
    "reki_ray/events/segments.py": {"SegmentWriter._create"},
    # Opens for reading.
    "reki_ray/data/compression.py": {"_arrow"},
    # Lives as long as its process.
    "deployments/ingress.py": {"_own_folder"},
    "reki_ray/tuning/searcher.py": {"Study.__init__"},
}
"""Functions that write without `reki_ray.core.atomic`, and why that does no harm."""

WRITERS = {
    *("write_bytes", "touch", "rename", "renames", "link", "symlink", "symlink_to", "hardlink_to"),
    *("copy2", "copyfile", "copytree", "copyfileobj", "put_file", "pipe_file", "pipe", "mv"),
    *("OSFile", "ParquetWriter", "new_file", "save_file", "save", "savez", "savez_compressed"),
    *("savetxt", "save_pretrained", "tofile", "to_parquet", "to_csv", "savefig"),
    *("mkdtemp", "mkstemp", "truncate"),
}
"""Names of functions that write to the disk."""

OPENED = {"file", "sink", "buffer"}
"""What files are called that `writing` has opened, or that are in memory."""


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "some" / "folder" / "file"
    atomic.replace_file(path, b"old")
    with atomic.writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with contextlib.suppress(RuntimeError), atomic.writing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    atomic.replace_file(path, b"old")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(os, "fdopen", full)
        else:
            patch.setattr(Path if call == "replace" else os, call, full)
        with pytest.raises(OSError, match="No space"):
            atomic.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    assert atomic.create_file(path, b"first", mode=0o600)
    assert not atomic.create_file(path, b"second", mode=0o600)
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["key"]


@pytest.mark.parametrize(("mask", "mode", "expected"), [(0o77, 0o644, 0o644), (0o27, None, 0o640)])
def test_a_mode_is_exact_and_none_is_the_umask_s(
    tmp_path: Path, mask: int, mode: int | None, expected: int
) -> None:
    before = os.umask(mask)
    try:
        atomic.replace_file(tmp_path / "file", b"", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == expected


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Names that were synced and renamed, in their order."""
    found: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    opening, syncing, renaming = os.open, os.fsync, Path.replace

    def open_(path: Path, *rest: int, **more: int) -> int:
        descriptor = opening(path, *rest, **more)
        names[descriptor] = Path(path).name
        return descriptor

    def fsync(descriptor: int) -> None:
        found.append(("sync", names[descriptor]))
        syncing(descriptor)

    def replace(self: Path, target: Path) -> Path:
        found.append(("rename", target.name))
        return renaming(self, target)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return found


def test_content_is_on_the_disk_before_its_name_and_new_folders_before_both(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    atomic.replace_file(tmp_path / "a" / "b" / "file", b"content")
    [scratch] = {name for kind, name in calls if name.startswith(".tmp-")}
    assert calls == [
        ("sync", tmp_path.name),  # holds a
        ("sync", "a"),  # holds b
        ("sync", scratch),
        ("rename", "file"),
        ("sync", "b"),
    ]


def test_a_folder_is_on_the_disk_with_all_it_holds_before_its_name(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "inner").mkdir(parents=True)
    for name in ("one", "inner/two"):
        (scratch / name).write_bytes(b"content")
    calls.clear()
    atomic.move(scratch, tmp_path / "target")
    place = calls.index(("rename", "target"))
    assert {name for _, name in calls[:place]} == {"scratch", "inner", "one", "two"}
    assert calls[place + 1 :] == [("sync", tmp_path.name)]


def test_a_filesystem_that_syncs_no_folders_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        syncing(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.replace_file(tmp_path / "folder" / "file", b"content")
    assert (tmp_path / "folder" / "file").read_bytes() == b"content"


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1234").touch()
    (tmp_path / "file").touch()
    atomic.remove_scratch(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("root", ["memory://atomic-test", None])
def test_a_workspace_writes_whole_files_on_any_filesystem(tmp_path: Path, root: str | None) -> None:
    workspace = Workspace(root or tmp_path)
    with workspace.writing("some/folder", "file") as file:
        file.write(b"old")
    with contextlib.suppress(RuntimeError), workspace.writing("some/folder", "file") as file:
        file.write(b"half")
        raise RuntimeError
    assert workspace.filesystem.cat_file(workspace.path("some/folder", "file")) == b"old"


def test_nothing_writes_in_place() -> None:
    """Writers use `reki_ray.core.atomic` or `Workspace.writing`, or give a reason above."""
    found: dict[str, set[str]] = {}
    for package in ("reki_ray", "actors", "deployments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            writers = set(_writers(ast.parse(path.read_text(encoding="utf-8")), ""))
            if writers and name != "reki_ray/core/atomic.py":
                found[name] = writers
    assert found == OTHERWISE


def _writers(node: ast.AST, inside: str) -> Iterator[str]:
    """Functions that write, without what they write into a file of `writing`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _writers(child, f"{inside}.{child.name}".lstrip("."))
            continue
        if isinstance(child, ast.Call) and _writes(child):
            yield inside
        yield from _writers(child, inside)


def _writes(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = getattr(getattr(function, "value", None), "id", "")
    if any(getattr(value, "id", "") in OPENED for value in call.args):
        return False
    if name == "open":
        return any(_is_write_mode(value) for value in _values(call))
    if name == "replace":
        # str.replace takes two texts; a path's takes one, and nothing else looks like it.
        return owner == "os" or (len(call.args) == 1 and not call.keywords)
    if name == "write_text":  # that of a workspace takes a name besides, and is atomic
        return len(call.args) == 1
    if name == "write_table":
        return owner == "pq"
    return name in WRITERS


def _values(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _is_write_mode(value: ast.expr) -> bool:
    if isinstance(value, ast.Attribute):
        return value.attr in {"O_CREAT", "O_WRONLY", "O_RDWR"}
    if isinstance(value, ast.BinOp):
        return _is_write_mode(value.left) or _is_write_mode(value.right)
    text = value.value if isinstance(value, ast.Constant) else None
    return isinstance(text, str) and len(text) <= 3 and bool(set(text) & set("wax+"))
