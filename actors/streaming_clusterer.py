"""The streaming clusterer: one StreaKHC tree that all of a cluster inserts into and asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reki_ray.clustering.streakhc.durable import DurableStream, StreamAssignment
from reki_ray.config import StreaKhcConfig

NAME = "reki-streaming-clusterer"


class StreamingClusterer:
    """A long-lived actor around a `DurableStream`, see there for what each call does.

    Start it with `ray.remote(StreamingClusterer).options(name=NAME, max_restarts=-1,
    max_task_retries=-1)`: a call that was cut off by a death is repeated, and an insert that was
    logged before the death does nothing the second time.

    Args:
        folder: Where log and snapshots lie; storage that outlives the actor's node.
        config: Kernel and tree.
        snapshot_every: Inserts between two snapshots, which bound the time of a restart.
    """

    def __init__(self, folder: str, config: StreaKhcConfig, snapshot_every: int = 1000) -> None:
        self._stream = DurableStream(Path(folder), config)
        self._every = snapshot_every

    def begin(self, sample: np.ndarray) -> None:
        """Fit projection and kernel on a sample (N, d), if the stream has not begun."""
        self._stream.begin(sample)

    def insert(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        """Insert points (N, d); returns the number of inserts acknowledged so far."""
        before = self._stream.inserts
        number = self._stream.insert(ids, vectors)
        if number > before and number % self._every == 0:
            self._stream.snapshot()
        return number

    def assign(self, vectors: np.ndarray) -> StreamAssignment:
        """Clusters of points (N, d) in the last cut."""
        return self._stream.assign(vectors)

    def cut(self, clusters: int, min_size: int) -> int:
        """Cut the tree anew; returns the number of clusters."""
        return self._stream.cut(clusters, min_size)

    def snapshot(self) -> None:
        """Write the state now."""
        self._stream.snapshot()
