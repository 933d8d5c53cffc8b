"""The streaming clusterer as a Ray actor that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.streaming_clusterer import StreamingClusterer
from reki_ray.clustering.streakhc.durable import DurableStream
from reki_ray.config import StreaKhcConfig
from reki_ray.core.vectors import normalise
from reki_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.ray

CONFIG = StreaKhcConfig(subsamples=30, subsample_points=32, max_leaves=64, dimensions=8)


def points(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(6, 16))
    return normalise(centres[random.integers(0, 6, count)] + random.normal(0, 0.3, (count, 16)))


def batch(number: int) -> tuple[list[str], np.ndarray]:
    return [f"u{number}-{row}" for row in range(20)], points(20, seed=100 + number)


def whole(folder: Path, batches: int) -> DurableStream:
    """A stream that nothing ever interrupted."""
    stream = DurableStream(folder, CONFIG)
    stream.begin(points(200, seed=1))
    for number in range(batches):
        stream.insert(*batch(number))
    return stream


class Mortal(StreamingClusterer):
    """Tells its process, so that a test can kill it."""

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def clusterer(ray_local: None, tmp_path: Path) -> Iterator[Any]:
    del ray_local
    actor: Any = (
        ray.remote(Mortal)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        .remote(str(tmp_path / "stream"), CONFIG, snapshot_every=4)
    )
    yield actor
    ray.kill(actor)


@pytest.mark.slow
def test_no_acknowledged_insert_is_lost_by_kills(clusterer: Any, tmp_path: Path) -> None:
    ray.get(clusterer.begin.remote(points(200, seed=1)))
    for number in range(11):
        if number in {3, 4, 9}:  # before, at and after a snapshot
            os.kill(ray.get(clusterer.pid.remote()), signal.SIGKILL)
        assert ray.get(clusterer.insert.remote(*batch(number))) == number + 1
    ray.get(clusterer.cut.remote(6, 4))
    expected = whole(tmp_path / "whole", 11)
    expected.cut(6, 4)
    os.kill(ray.get(clusterer.pid.remote()), signal.SIGKILL)
    new = points(50, seed=7)
    found = ray.get(clusterer.assign.remote(new))
    np.testing.assert_array_equal(found.labels, expected.assign(new).labels)
    np.testing.assert_allclose(found.similarities, expected.assign(new).similarities)


def test_a_restored_stream_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    first = whole(tmp_path / "one", 5)
    first.snapshot()
    first.insert(*batch(5))
    restored = DurableStream(tmp_path / "one", CONFIG)
    assert restored.inserts == 6
    restored.insert(*batch(6))
    expected = whole(tmp_path / "two", 7)
    assert restored.cut(5, 2) == expected.cut(5, 2)
    new = points(40, seed=8)
    np.testing.assert_array_equal(restored.assign(new).labels, expected.assign(new).labels)


def test_the_same_insert_twice_counts_once(tmp_path: Path) -> None:
    stream = whole(tmp_path, 3)
    assert stream.insert(*batch(1)) == 3
    stream.snapshot()
    assert DurableStream(tmp_path, CONFIG).insert(*batch(2)) == 3


def test_a_write_that_was_cut_off_was_not_acknowledged(tmp_path: Path) -> None:
    whole(tmp_path, 3)
    (tmp_path / "log" / "000000000004-abc.tmp").write_bytes(b"half")
    assert DurableStream(tmp_path, CONFIG).inserts == 3


def test_a_damaged_log_is_told_and_not_passed_over(tmp_path: Path) -> None:
    whole(tmp_path, 3)
    sorted((tmp_path / "log").glob("*.npy"))[1].write_bytes(b"damage")
    with pytest.raises(DataError, match="damaged") as caught:
        DurableStream(tmp_path, CONFIG)
    assert str(tmp_path) in caught.value.where


def test_calls_before_their_time_are_refused(tmp_path: Path) -> None:
    stream = DurableStream(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match="has not begun"):
        stream.insert(*batch(0))
    stream.begin(points(200, seed=1))
    with pytest.raises(ConfigError, match="no point"):
        stream.cut(3, 2)
    with pytest.raises(ConfigError, match="not cut"):
        stream.assign(points(2, seed=3))
    broken = points(3, seed=3)
    broken[1, 0] = np.inf
    with pytest.raises(DataError, match="NaN or infinity") as caught:
        stream.insert(["a", "b", "c"], broken)
    assert "b" in caught.value.where
