"""Digests of files: the content decides, and a large file is read once."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from reki_ray.core import file_digests
from reki_ray.core.file_digests import file_digest, folder_digest


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every file counts as large, and as settled at once."""
    monkeypatch.setenv("REKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_digests, "_LEAST_BYTES", 0)
    monkeypatch.setattr(file_digests, "_SETTLED_SECONDS", -1.0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_change_in_place_is_seen_also_where_all_times_are_set_back(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"a" * 1000)
    before = file.stat()
    assert file_digest(file) == sha256(b"a" * 1000)
    time.sleep(0.05)  # the clock of the file system ticks every few milliseconds
    with file.open("r+b") as opened:
        opened.seek(500)
        opened.write(b"b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file_digest(file) == sha256(b"a" * 500 + b"b" + b"a" * 499)


def test_a_copy_elsewhere_is_the_same_content(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"content")
    copy = Path(shutil.copy2(file, tmp_path / "b.bin"))
    assert file_digest(copy) == file_digest(file) == sha256(b"content")


def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"content")
    first = file_digest(file)
    monkeypatch.setattr(file_digests, "_computed", lambda path: pytest.fail(f"{path} is read"))
    assert file_digest(file) == first


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_SETTLED_SECONDS", 60.0)
    file = tmp_path / "a.bin"
    file.write_bytes(b"content")
    file_digest(file)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_damaged_or_closed_cache_costs_time_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"content")
    file_digest(file)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for damage in (b"", b"{", b"[]", b'{"state": 1}'):
        kept.write_bytes(damage)
        assert file_digest(file) == sha256(b"content")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert file_digest(file) == sha256(b"content")


def test_a_folder_is_its_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, bytes]) -> Path:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return tmp_path / name

    base = {"config.json": b"{}", "deep/model.safetensors": b"1234"}
    first = folder_digest(folder("a", base))
    assert folder_digest(folder("b", {**base, ".cache/x": b"x", "README.md": b"x"})) == first
    assert folder_digest(folder("c", {**base, "deep/model.safetensors": b"1235"})) != first
    assert folder_digest(folder("d", {"config.json": b"{}", "model.safetensors": b"1234"})) != first


def test_linked_folders_are_part_of_a_folder(tmp_path: Path) -> None:
    weights, folder = tmp_path / "elsewhere", tmp_path / "model"
    (weights / "deep").mkdir(parents=True)
    (weights / "deep" / "w.bin").write_bytes(b"1")
    folder.mkdir()
    (folder / "weights").symlink_to(weights)
    (folder / "same").symlink_to(weights)
    (folder / "itself").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "gone")
    before = folder_digest(folder)
    (weights / "deep" / "w.bin").write_bytes(b"2")
    assert folder_digest(folder) != before
    plain = tmp_path / "plain"
    for name in ("weights", "same"):
        shutil.copytree(weights, plain / name)
    assert folder_digest(plain) == folder_digest(folder)
