"""Fetching packages: verified, whole or not at all, once under concurrency."""

from __future__ import annotations

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reki_ray.core import downloads
from reki_ray.core.downloads import (
    Package,
    cache_folder,
    package_path,
    resolve_model,
)
from reki_ray.errors import ConfigError, DataError, EngineError

NAME, VERSION = "reki-test-asset", "1.0.0"


@pytest.fixture
def wheel_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A local index with one wheel, and an empty cache; pip sees no network."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "reki_test_asset-1.0.0-py3-none-any.whl"
    info = "reki_test_asset-1.0.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("reki_test_asset/data.txt", "content")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("REKI_CACHE", str(tmp_path / "cache"))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def package(sha256: str, version: str = VERSION) -> Package:
    return Package(NAME, version, sha256, "reki_test_asset/data.txt")


def leftovers() -> list[Path]:
    return [p for p in (cache_folder() / "packages").iterdir() if p.suffix != ".lock"]


def test_a_package_is_fetched_once_and_then_read_from_the_cache(
    wheel_hash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    path = package_path(package(wheel_hash), say=said.append)
    assert path.read_text() == "content"
    assert leftovers() == [path.parents[1]]

    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert package_path(package(wheel_hash), say=said.append) == path
    assert len(said) == 1


def test_a_wrong_hash_leaves_nothing_in_the_cache(wheel_hash: str) -> None:
    with pytest.raises(DataError, match=f"{wheel_hash}, expected {'0' * 64}"):
        package_path(package("0" * 64))
    assert leftovers() == []


def test_an_unreachable_package_is_an_engine_error_with_what_to_do(wheel_hash: str) -> None:
    with pytest.raises(EngineError, match="REKI_CACHE") as caught:
        package_path(package(wheel_hash, "9.9.9"))
    assert caught.value.exit_code == 4
    assert leftovers() == []


def test_concurrent_fetches_share_one_download(wheel_hash: str) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(package_path, package(wheel_hash), say=said.append) for _ in range(4)]
        paths = {call.result() for call in calls}
    assert len(paths) == 1
    assert len(said) == 1


def test_an_unwritable_cache_says_so(wheel_hash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKI_CACHE", "/dev/null/cache")
    with pytest.raises(EngineError, match="cache cannot be written"):
        package_path(package(wheel_hash))


def test_an_incomplete_cached_copy_names_the_folder_to_delete(wheel_hash: str) -> None:
    package_path(package(wheel_hash)).unlink()
    with pytest.raises(DataError, match="Delete that folder"):
        package_path(package(wheel_hash))


def test_models_of_one_s_own_are_left_alone() -> None:
    assert resolve_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


def test_an_unknown_packaged_model_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"all-minilm-l6-v2.*smollm2-135m-instruct"):
        resolve_model("packaged:gpt-9")


def test_a_conversion_runs_once_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKI_CACHE", str(tmp_path))
    monkeypatch.setattr(
        downloads, "package_path", lambda package, *, say: tmp_path / package.member
    )
    calls: list[str] = []

    def convert(source: Path, target: Path) -> None:
        calls.append(source.name)
        target.mkdir()
        (target / "weights").touch()
        if len(calls) == 1:
            raise DataError("interrupted", where="here", todo="Again.")

    monkeypatch.setattr(downloads, "convert_gguf", convert)
    with pytest.raises(DataError, match="interrupted"):
        resolve_model("packaged:smollm2-135m-instruct")
    assert [p for p in (tmp_path / "models").iterdir() if p.suffix != ".lock"] == []

    folder = resolve_model("packaged:smollm2-135m-instruct")
    assert resolve_model("packaged:smollm2-135m-instruct") == folder
    assert Path(folder, "weights").exists()
    assert calls == ["SmolLM2-135M-Instruct.Q4_1.gguf"] * 2
