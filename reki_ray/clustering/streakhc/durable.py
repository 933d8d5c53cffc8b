"""A StreaKHC stream that survives its process: a log of inserts, and snapshots.

An insert is acknowledged when it is in the log on disk. A restart loads the last snapshot and
replays the log since then in the same order, which gives the same tree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from reki_ray.clustering.assignment import nearest
from reki_ray.clustering.pca import Projection
from reki_ray.clustering.streakhc.kernel import IsolationKernel
from reki_ray.clustering.streakhc.stream import StreaKHC
from reki_ray.config import StreaKhcConfig
from reki_ray.core import atomic
from reki_ray.core.vectors import require_finite
from reki_ray.errors import ConfigError, DataError

_STATE = "state.json"
_CENTRES = "centres.npy"
_LOG = "log"
_REMEMBERED = 10_000
"""Inserts that are recognised when repeated."""


@dataclass(frozen=True)
class StreamAssignment:
    """Clusters of points.

    Attributes:
        labels: (N,) int64 cluster of the last cut.
        similarities: (N,) float32 cosine of each point to its centre, both projected.
    """

    labels: np.ndarray
    similarities: np.ndarray


class DurableStream:
    """StreaKHC over projected points, in a local folder.

    Args:
        folder: Log, snapshots and the last cut; resumes from existing files.
        config: Kernel and tree of a new stream.

    Raises:
        DataError: A file is damaged.
    """

    def __init__(self, folder: Path, config: StreaKhcConfig) -> None:
        self._folder = folder
        self._config = config
        self._stream: StreaKHC | None = None
        self._projection: Projection | None = None
        self._centres: np.ndarray | None = None
        self._number = 0  # of the last insert in the log
        self._snapshot = -1
        self._logged: dict[str, None] = {}  # in order, the last of them
        atomic.make_folder(folder / _LOG)
        for place in (folder, folder / _LOG):
            atomic.remove_scratch(place)
        if (folder / _STATE).exists():
            self._restore()

    @property
    def inserts(self) -> int:
        """Inserts acknowledged since the stream began."""
        return self._number

    def begin(self, sample: np.ndarray) -> None:
        """Fit projection and kernel on N >= 2 unit rows (N, d), unless the stream has begun."""
        if self._stream is not None:
            return
        config = self._config
        self._projection = Projection.fitted(sample, config.dimensions, config.seed)
        kernel = IsolationKernel.drawn(
            self._projection(sample), config.subsamples, config.subsample_points, config.seed
        )
        self._stream = StreaKHC(kernel, config.max_leaves)
        self.snapshot()

    def insert(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        """Insert unit rows (N, d) durably; repeating an insert of the same ids does nothing.

        Returns the number of inserts acknowledged so far.

        Raises:
            ConfigError: The stream has not begun.
            DataError: A vector is not finite.
        """
        stream, projection = self._begun()
        require_finite(ids, vectors, what="vectors to insert")
        points = projection(vectors)
        name = _content(ids, points)
        if name in self._logged:
            return self._number
        target = self._folder / _LOG / f"{self._number + 1:012d}-{name}.npy"
        _write(target, points)
        self._acknowledge(self._number + 1, name)
        stream.insert(points)
        return self._number

    def cut(self, clusters: int, min_size: int) -> int:
        """Cut the tree into flat clusters for `assign`; returns their number.

        Raises:
            ConfigError: The stream has not begun, or nothing was inserted.
        """
        stream, _ = self._begun()
        if not stream.points:
            raise self._missing("no points were inserted")
        self._centres = stream.cut(clusters, min_size)
        _write(self._folder / _CENTRES, self._centres)
        return len(self._centres)

    def assign(self, vectors: np.ndarray) -> StreamAssignment:
        """Clusters of points (N, d), inserted or not.

        Raises:
            ConfigError: There is no cut yet.
        """
        _, projection = self._begun()
        if self._centres is None:
            raise self._missing("the tree has not been cut")
        return StreamAssignment(*nearest(projection(vectors), self._centres))

    def snapshot(self) -> None:
        """Write the state and remove the log before it."""
        stream, projection = self._begun()
        stream.save(self._folder / f"stream-{self._number}.npz")
        with atomic.writing(self._folder / f"projection-{self._number}.npz") as file:
            np.savez(file, mean=projection.mean, components=projection.components)
        # This write makes the new snapshot valid; older files are removed afterwards.
        state = {"insert": self._number, "logged": list(self._logged)}
        atomic.replace_file(self._folder / _STATE, json.dumps(state).encode())
        self._snapshot = self._number
        self._remove_old()

    def _restore(self) -> None:
        path = self._folder / _STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self._snapshot = self._number = int(state["insert"])
            self._logged = dict.fromkeys(state["logged"])
            with np.load(self._folder / f"projection-{self._number}.npz") as arrays:
                self._projection = Projection(arrays["mean"], arrays["components"])
            if (self._folder / _CENTRES).exists():
                self._centres = np.load(self._folder / _CENTRES)
            self._stream = StreaKHC.load(self._folder / f"stream-{self._number}.npz")
            for logged in self._log():
                number, _, name = logged.stem.partition("-")
                if int(number) > self._snapshot:
                    self._stream.insert(np.load(logged))
                    self._acknowledge(int(number), name)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(
                f"the stream's files are damaged: {error}",
                where=str(self._folder),
                todo="Restore the folder from a copy, or delete it and insert everything again.",
            ) from error

    def _acknowledge(self, number: int, name: str) -> None:
        self._number = number
        self._logged[name] = None
        if len(self._logged) > _REMEMBERED:
            del self._logged[next(iter(self._logged))]

    def _log(self) -> list[Path]:
        return sorted((self._folder / _LOG).glob("*.npy"))

    def _remove_old(self) -> None:
        for path in self._log():
            if int(path.stem.partition("-")[0]) <= self._snapshot:
                path.unlink()
        for path in self._folder.glob("*-*.npz"):
            if path.stem.partition("-")[2] != str(self._snapshot):
                path.unlink()

    def _begun(self) -> tuple[StreaKHC, Projection]:
        if self._stream is None or self._projection is None:
            raise self._missing("the stream has not begun")
        return self._stream, self._projection

    def _missing(self, what: str) -> ConfigError:
        return ConfigError(
            what, where=str(self._folder), todo="Call begin with a sample, insert, then cut."
        )


def _content(ids: Sequence[str], points: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps(list(ids)).encode())
    digest.update(np.ascontiguousarray(points).tobytes())
    return digest.hexdigest()[:32]


def _write(target: Path, array: np.ndarray) -> None:
    with atomic.writing(target) as file:
        np.save(file, array)
