"""The ledger of vectors: content-addressed, append-only, one folder an encoder.

A vector's address is the hash of its text, below the identity of its encoder: only what is new
is encoded, and vectors of two encoders never meet. A work unit becomes one Parquet file (512
vectors of MiniLM are 0.8 MB) whose name is the hash of the addresses in it, written aside and
renamed: what a reader sees is whole, a unit that is written twice is the same file, and a kill
loses the unit in flight at most.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray.core.vectors import stack, vector_column
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders.protocol import EncoderIdentity
from reki_ray.errors import DataError, EngineError
from reki_ray.schema import MODEL, REVISION, VECTOR, Table

TEXT_HASH: Final = "text_hash"
FOLDER: Final = "encode/ledger"

DIGEST_BYTES: Final = 32
DIGEST: Final = f"S{DIGEST_BYTES}"
"""Type of a text hash in memory: a quarter of a hexadecimal string."""

_READERS = 8


def digests_of(texts: Sequence[str]) -> np.ndarray:
    """SHA-256 of texts, (N,) of type `DIGEST`."""
    joined = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    return np.frombuffer(joined, dtype=DIGEST)


def unit_name(digests: np.ndarray) -> str:
    """Name of the file that holds the vectors of these texts, in any order."""
    return f"unit-{hashlib.sha256(np.sort(digests).tobytes()).hexdigest()[:32]}.parquet"


@dataclass(frozen=True)
class VectorIndex:
    """Hash -> place of the vector; one entry a hash, sorted.

    Attributes:
        files: Paths of the ledger's files.
        digests: (N,) hashes.
        file: (N,) index into `files`.
        row: (N,) row in that file.
    """

    files: tuple[str, ...]
    digests: np.ndarray
    file: np.ndarray
    row: np.ndarray

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Entries of hashes, (M,) int64, -1 where there is no vector."""
        if not len(self.digests):
            return np.full(len(digests), -1)
        at = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[at] == digests, at, -1)


class VectorCache:
    """Vectors of one encoder in one workspace.

    Args:
        workspace: The run's folder.
        identity: The encoder.
    """

    def __init__(self, workspace: Workspace, identity: EncoderIdentity) -> None:
        self._workspace = workspace
        self._identity = identity
        self._table = Table(f"{FOLDER}/{identity.digest}", None)

    # --- writing -------------------------------------------------------------------------------

    def has(self, unit: str) -> bool:
        """Whether a work unit of this name is kept already."""
        return self._workspace.exists(self._table.path, unit)

    def units(self) -> frozenset[str]:
        """Names of all work units that are kept."""
        parts = self._workspace.parts(self._table)
        return frozenset(part.rpartition("/")[2] for part in parts)

    def append(self, digests: np.ndarray, vectors: np.ndarray) -> None:
        """Keep one work unit; it survives a kill from here on.

        Args:
            digests: (N,) hashes of the texts.
            vectors: (N, d).

        Raises:
            EngineError: The workspace cannot be written.
        """
        count = len(digests)
        rows = pa.table(
            {
                TEXT_HASH: [digest.hex() for digest in _bytes_of(digests)],
                MODEL: [self._identity.model] * count,
                REVISION: [self._identity.revision] * count,
                VECTOR: vector_column(vectors),
            }
        )
        name, folder = unit_name(digests), self._table.path
        with (
            _writing(self._workspace.path(folder, name)),
            self._workspace.writing(folder, name) as sink,
        ):
            pq.write_table(rows, sink)

    # --- reading -------------------------------------------------------------------------------

    def index(self) -> VectorIndex:
        """Where each vector lies.

        Raises:
            DataError: A file of the ledger is damaged.
        """
        names = self._workspace.parts(self._table)
        with ThreadPoolExecutor(_READERS) as readers:
            found = list(readers.map(self._hashes, names))
        lengths = [len(hashes) for hashes in found]
        digests = np.concatenate([np.zeros(0, DIGEST), *found])
        rows = [np.arange(length, dtype=np.int32) for length in lengths]
        # A text that two units hold has equal vectors in both: the first counts.
        unique, first = np.unique(digests, return_index=True)
        return VectorIndex(
            files=tuple(names),
            digests=unique,
            file=np.repeat(np.arange(len(names), dtype=np.int32), lengths)[first],
            row=np.concatenate([np.zeros(0, np.int32), *rows])[first],
        )

    def vectors(self, index: VectorIndex, digests: np.ndarray) -> np.ndarray:
        """Vectors of texts.

        Args:
            index: Index of this ledger that holds all of them.
            digests: (N,) hashes of the texts, at least one.

        Returns:
            (N, d) float32, rows of unit length.

        Raises:
            DataError: A file of the ledger is damaged, or lacks a vector.
        """
        distinct, back = np.unique(digests, return_inverse=True)
        entries = index.find(distinct)
        if (entries < 0).any():
            raise DataError(
                f"the ledger lacks the vectors of {int((entries < 0).sum())} texts",
                where=self._workspace.path(self._table.path),
                todo="Run the stage again: only these texts are encoded.",
            )
        files = index.file[entries]
        gathered: np.ndarray | None = None
        for number in np.unique(files):
            here = np.flatnonzero(files == number)
            path = index.files[number]
            kept = self._read(path, VECTOR)
            if gathered is None:
                gathered = np.empty((len(distinct), kept.shape[1]), dtype=np.float32)
            if kept.shape[1] != gathered.shape[1]:
                raise _damaged(path, f"{kept.shape[1]} dimensions, not {gathered.shape[1]}")
            gathered[here] = kept[index.row[entries[here]]]
        assert gathered is not None  # there is at least one text
        spread: np.ndarray = gathered[back]
        return spread

    def dimension(self, index: VectorIndex) -> int:
        """Length d of the vectors; 0 where there are none."""
        if not index.files:
            return 0
        path = index.files[0]
        with self._reading(path), self._workspace.filesystem.open(path, "rb") as source:
            return int(pq.read_schema(source).field(VECTOR).type.list_size)

    def _hashes(self, path: str) -> np.ndarray:
        with self._reading(path), self._workspace.filesystem.open(path, "rb") as source:
            column = pq.read_table(source, columns=[TEXT_HASH])[TEXT_HASH]
            joined = bytes.fromhex("".join(column.to_pylist()))
        if len(joined) != DIGEST_BYTES * len(column):
            raise _damaged(path, "a text hash has another length")
        return np.frombuffer(joined, dtype=DIGEST)

    def _read(self, path: str, column: str) -> np.ndarray:
        with self._reading(path), self._workspace.filesystem.open(path, "rb") as source:
            return stack(pq.read_table(source, columns=[column])[column])

    @staticmethod
    @contextlib.contextmanager
    def _reading(path: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, str(error)) from error


def _bytes_of(digests: np.ndarray) -> list[bytes]:
    """Numpy drops the zeros at the end of a byte string; a hash may end in them."""
    raw = np.ascontiguousarray(digests, dtype=DIGEST).tobytes()
    return [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]


def _damaged(path: str, reason: str) -> DataError:
    return DataError(
        f"a file of the vector ledger is damaged: {reason}",
        where=path,
        todo="Delete it and run again: only its texts are encoded anew.",
    )


@contextlib.contextmanager
def _writing(target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(
            f"vectors cannot be kept: {error}",
            where=target.rpartition("/")[0],
            todo="Free some space or mend the storage, and run again: what was kept is not "
            "encoded a second time.",
        ) from error
