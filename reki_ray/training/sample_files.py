"""Training samples in their Parquet files: a worker's share of an epoch, read piece by piece.

A row group is the smallest part of a file that can be read. An epoch takes all row groups in a
random order, and every worker gets an equal stretch of the rows in that order, so that all take
equally many steps however uneven files and row groups are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from reki_ray.core.workspace import Workspace, reading
from reki_ray.schema import ITEM_ID, LABEL, POSITION, SAMPLES, USER_ID
from reki_ray.training.batches import WorkerShard
from reki_ray.training.dataset import Ids, Ints, Samples, no_samples

TABLE: Final = SAMPLES["train"]
UNIT_ROWS: Final = 262_144
"""Rows read by one task: Ray Data keeps some 30 KiB per task until the epoch ends."""

PackedSamples = npt.NDArray[np.int32]
"""User, item, position and label of N samples, (N, 4): 16 bytes each, one row to move."""
LABEL_COLUMN: Final = 3

Pieces = Ints
"""Stretches of rows: number of the file, row group, first row in it, row after the last, (P, 4)."""


@dataclass(frozen=True)
class SampleFiles:
    """The files of the training samples.

    Args:
        groups: Number of the file, row group in it, and its rows, (G, 3).
    """

    workspace: str
    files: tuple[str, ...]
    groups: Ints

    @classmethod
    def find(cls, workspace: Workspace) -> SampleFiles:
        """The files of a workspace; reads their metadata, no samples.

        Raises:
            DataError: There are none, or one is damaged.
        """
        files = tuple(workspace.parts(TABLE))
        groups = []
        for number, path in enumerate(files):
            with reading(TABLE, path), workspace.filesystem.open(path, "rb") as file:
                metadata = pq.read_metadata(file)
                rows = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
            groups += [(number, group, count) for group, count in enumerate(rows) if count]
        if not groups:
            raise no_samples("train", workspace.path(TABLE.path))
        return cls(workspace.location, files, np.array(groups, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.groups[:, 2].sum())

    def everything(self) -> Pieces:
        """All rows in the order of the files."""
        return self._stretch(np.arange(len(self.groups)), 0, len(self))

    def pieces(self, share: WorkerShard) -> Pieces:
        """A worker's rows of an epoch, row groups in random order.

        If the number of workers does not divide the samples, the first ones are repeated at the
        end of the order.
        """
        order = np.random.default_rng([share.seed, share.epoch]).permutation(len(self.groups))
        count = share.samples(len(self))
        start = share.rank * count % len(self)
        surplus = max(0, start + count - len(self))
        body = self._stretch(order, start, start + count - surplus)
        return np.concatenate([body, self._stretch(order, 0, surplus)])

    def _stretch(self, order: Ints, start: int, stop: int) -> Pieces:
        """Rows start to stop of the row groups in that order."""
        file, group, rows = self.groups[order].T
        ends = np.cumsum(rows)
        first = np.maximum(start - (ends - rows), 0)
        last = np.minimum(stop - (ends - rows), rows)
        pieces: Pieces = np.stack([file, group, first, last], axis=1)[first < last]
        return pieces

    def read(self, pieces: Pieces, ids: Ids) -> PackedSamples:
        """Samples of some pieces, ids mapped to their places.

        Raises:
            DataError: A file is damaged, or an id is missing from its table.
        """
        parts = [np.empty((0, 4), dtype=np.int32)]
        # Each file is opened once: a long one has long metadata.
        by_file = sorted(pieces.tolist())
        for number, of_file in groupby(by_file, key=lambda piece: piece[0]):
            parts += self._read_file(self.files[number], [piece[1:] for piece in of_file], ids)
        return np.concatenate(parts)

    def _read_file(self, path: str, pieces: list[list[int]], ids: Ids) -> Iterator[PackedSamples]:
        columns = [USER_ID, ITEM_ID, POSITION, LABEL]
        filesystem = Workspace(self.workspace).filesystem
        with reading(TABLE, path), filesystem.open(path, "rb") as source:
            # Ids as dictionary indices, as in the file: few to look up.
            file = pq.ParquetFile(source, read_dictionary=[USER_ID, ITEM_ID])
            for group, start, stop in pieces:
                rows = file.read_row_group(group, columns, use_threads=False)
                rows = rows.slice(start, stop - start)
                packed = np.empty((len(rows), 4), dtype=np.int32)
                packed[:, 0] = ids.places(rows, USER_ID, path)
                packed[:, 1] = ids.places(rows, ITEM_ID, path)
                packed[:, 2] = rows.column(POSITION).to_numpy()
                packed[:, 3] = rows.column(LABEL).to_numpy()
                yield packed


def unpack(packed: PackedSamples) -> Samples:
    """Samples of packed rows (N, 4)."""
    users, items, positions, labels = packed.astype(np.int64).T
    return Samples(users, items, positions, labels.astype(np.float32))


def in_units(pieces: Pieces, rows: int = UNIT_ROWS) -> list[Pieces]:
    """Split pieces into tasks of about `rows` rows, in their order."""
    lengths = pieces[:, 3] - pieces[:, 2]
    unit = (np.cumsum(lengths) - lengths) // rows
    return np.split(pieces, np.flatnonzero(np.diff(unit)) + 1)
