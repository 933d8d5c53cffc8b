"""Fixtures shared by all tests: a synthetic data set, a workspace, a private Ray."""

from __future__ import annotations

import atexit
import csv
import itertools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import set_environment
from reki_ray.core.workspace import Workspace
from reki_ray.training.dataset import Dataset, read_dataset
from tests.support import trained_workspace
from tests.support.storages import (  # noqa: F401  # fixtures
    anywhere,
    faulty_server,
    proxy,
    s3_address,
    stored,
)

GENRES = ("Action", "Comedy", "Drama", "Horror")
USERS, ITEMS, EVENTS_PER_USER = 40, 60, 24

TinyConfig = Callable[..., RekiConfig]


def pytest_configure() -> None:
    """Quiet libraries, no clock, and a Ray token of our own: before any test imports Ray."""
    set_environment()
    settings.register_profile("no clock", deadline=None)
    settings.load_profile("no clock")
    os.environ.pop("RAY_ADDRESS", None)
    token = Path(tempfile.mkdtemp(prefix="reki-tests-")) / "token"
    token.write_text(secrets.token_hex(32))
    atexit.register(shutil.rmtree, token.parent, ignore_errors=True)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    os.environ["REKI_ADMIN_TOKEN"] = secrets.token_hex(32)  # replicas take it from Ray's start


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that starts Ray, so that `-m "not ray"` runs without it."""
    for item in items:
        if "ray_local" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def reporter(workspace: Workspace) -> Reporter:
    return Reporter(workspace, quiet=True)


@pytest.fixture(autouse=True)
def odd_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters of networks lie at changing places in memory, as they do on other machines.

    In which order a BLAS adds up depends on the processor and on how memory is aligned: copies of
    the same weights give outputs that differ by 1e-7 or so. A test that takes outputs to be equal
    in every bit fails here at once; parameters are, outputs are close.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # seconds to import, and this test has no network
        return
    new, number = torch.nn.Parameter.__new__, itertools.count()

    def shifted(kind: Any, data: Any = None, requires_grad: bool = True) -> Any:
        if data is None or data.device.type != "cpu" or data.layout != torch.strided:
            return new(kind, data, requires_grad)
        start = 5 * next(number) % 16
        room = torch.empty(data.numel() + 16, dtype=data.dtype)
        moved = room[start : start + data.numel()].view(data.shape)
        moved.copy_(data.detach())
        return new(kind, moved, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", staticmethod(shifted))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from torch's threads, and wait for them on a busy machine."""
    import torch  # seconds, which tests without a model need not wait for

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of folders whose checksums were compared."""
    from reki_ray.store import files, manifest  # not for tests without a store

    found: list[str] = []

    def note(folder: Path, described: manifest.Manifest) -> None:
        found.append(folder.name)
        manifest.verify(folder, described)

    monkeypatch.setattr(files, "verify_files", note)
    return found


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A private Ray with two CPUs, ended with the test session."""
    import ray  # unit tests must not pay for it

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic catalogue in which users like one genre, as three CSV files."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(7)
    genres = [GENRES[i % len(GENRES)] for i in range(ITEMS)]
    _write_csv(
        folder / "items.csv",
        ["item_id", "title", "genre"],
        ([f"m{i}", f"{genres[i]} film {i}", genres[i]] for i in range(ITEMS)),
    )
    _write_csv(
        folder / "users.csv",
        ["user_id", "gender"],
        ([f"u{u}", "FM"[u % 2]] for u in range(USERS)),
    )
    rows = []
    for user in range(USERS):
        favourite = GENRES[user % len(GENRES)]
        for step, item in enumerate(generator.permutation(ITEMS)[:EVENTS_PER_USER]):
            liked = genres[item] == favourite or generator.random() < 0.2
            rating = generator.integers(4, 6) if liked else generator.integers(1, 4)
            rows.append([f"u{user}", f"m{item}", int(rating), 1_000_000 + 1000 * step + user])
    _write_csv(folder / "interactions.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    return folder


@pytest.fixture
def filled(workspace: Workspace) -> Workspace:
    """A workspace with all tables that training reads."""
    trained_workspace.fill(workspace)
    return workspace


@pytest.fixture
def dataset(filled: Workspace) -> Dataset:
    """What training reads of it."""
    return read_dataset(filled)


@pytest.fixture
def tiny_config(tiny_data: Path, workspace: Workspace) -> TinyConfig:
    """Makes a configuration over the synthetic data, scripted engine, small networks.

    Keyword arguments replace keys of a section: `tiny_config(train={"workers": 2})`.
    """

    def make(**overrides: dict[str, Any]) -> RekiConfig:
        tree: dict[str, Any] = {
            "name": "tiny",
            "workspace": workspace.root,
            "data": {
                "source": {
                    "kind": "csv",
                    "interactions": str(tiny_data / "interactions.csv"),
                    "items": str(tiny_data / "items.csv"),
                    "users": str(tiny_data / "users.csv"),
                    "columns": {"item_attributes": ["genre"], "user_attributes": ["gender"]},
                }
            },
            "split": {"prompt_history": 8},
            "cluster": {
                "dimensions": 4,
                "users": {"min_cluster_size": 4},
                "items": {"min_cluster_size": 4},
            },
            "extract": {"engine": {"kind": "scripted"}, "unit_rows": 4},
            "train": {"epochs": 2, "batch_size": 64, "seeds": [0], "arms": ["fair_base", "reki_c"]},
            "evaluate": {"bootstrap": 100},
            "serve": {
                "port": 0,
                "edge": {"allow_anonymous": True, "request_logs": False},
                "measure_candidates": 10,
                "measure_requests": 10,
            },
            "ray": {"num_cpus": 2, "object_store_mib": 256},
        }
        for section, keys in overrides.items():
            tree[section] = {**tree.get(section, {}), **keys}
        return RekiConfig.model_validate(tree)

    return make


def _write_csv(path: Path, header: list[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
