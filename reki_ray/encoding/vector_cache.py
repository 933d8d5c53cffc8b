"""Every vector of a text, addressed by the text, one folder per encoder.

Only new texts are encoded, and vectors of two encoders never meet.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import pyarrow as pa

from reki_ray.core.content_store import ContentIndex, ContentStore, digest_bytes, parse_digests
from reki_ray.core.vectors import stack, vector_column
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders.protocol import EncoderIdentity
from reki_ray.errors import DataError
from reki_ray.schema import MODEL, REVISION, VECTOR, Table

TEXT_HASH: Final = "text_hash"


def unit_name(digests: np.ndarray) -> str:
    """Name of the file with the vectors of these texts, in any order."""
    return f"unit-{_hash_digests(digests)}.parquet"


def _hash_digests(digests: np.ndarray) -> str:
    return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()[:32]


class VectorCache:
    """Vectors of one encoder in one workspace.

    Example:
        >>> cache = VectorCache(Workspace("runs/demo"), encoder.identity)
        >>> cache.append(digest_texts(texts), encoder.encode(texts))
        >>> vectors = cache.vectors(cache.index(), digest_texts(texts))
    """

    def __init__(self, workspace: Workspace, identity: EncoderIdentity) -> None:
        self._workspace = workspace
        self._identity = identity
        self._table = Table(f"encode/ledger/{identity.digest}", None)
        self._store = ContentStore(
            workspace,
            self._table,
            TEXT_HASH,
            what="the vector cache",
            hash_rows=lambda rows: _hash_digests(parse_digests(rows[TEXT_HASH])),
        )

    def has(self, unit: str) -> bool:
        """Whether a work unit is finished."""
        return self._workspace.exists(self._table.path, unit)

    def units(self) -> frozenset[str]:
        """Names of the finished work units."""
        return self._store.names()

    def append(self, digests: np.ndarray, vectors: np.ndarray) -> None:
        """Save one work unit; it survives a kill from here on.

        Args:
            digests: (N,) hashes of the texts.
            vectors: (N, d).

        Raises:
            EngineError: The workspace cannot be written.
        """
        columns = {
            TEXT_HASH: [digest.hex() for digest in digest_bytes(digests)],
            MODEL: [self._identity.model] * len(digests),
            REVISION: [self._identity.revision] * len(digests),
            VECTOR: vector_column(vectors),
        }
        self._store.append(pa.table(columns))

    def index(self) -> ContentIndex:
        """Index all vectors; a second call reads only the files that are new."""
        return self._store.index()

    def vectors(self, index: ContentIndex, digests: np.ndarray) -> np.ndarray:
        """Read the vectors (N, d) float32 of N >= 1 texts.

        Raises:
            DataError: A file is damaged, or a text has no vector in the index.
        """
        distinct, inverse = np.unique(digests, return_inverse=True)
        entries = index.find(distinct)
        if missing := int((entries < 0).sum()):
            raise DataError(
                f"the vector cache lacks the vectors of {missing} texts",
                where=self._workspace.path(self._table.path),
                todo="Run the stage again: only these texts are encoded.",
            )
        files = index.file[entries]
        gathered: np.ndarray | None = None
        for number in np.unique(files):
            path, here = index.files[number], np.flatnonzero(files == number)
            vectors = stack(self._store.read(path, [VECTOR])[VECTOR])
            if gathered is None:
                gathered = np.empty((len(distinct), vectors.shape[1]), dtype=np.float32)
            if vectors.shape[1] != gathered.shape[1]:
                reason = f"{vectors.shape[1]} dimensions, not {gathered.shape[1]}"
                raise self._store.damaged(path, reason)
            gathered[here] = vectors[index.row[entries[here]]]
        assert gathered is not None  # there is at least one text
        vectors = gathered[inverse]
        return vectors

    def dimension(self, index: ContentIndex) -> int:
        """Length d of the vectors; 0 if there are none."""
        if not index.files:
            return 0
        return int(self._store.read(index.files[0], [VECTOR])[VECTOR].type.list_size)
