"""The ledger of every answer: content-addressed, append-only, safe with several writers.

A prompt's address covers all that determines its answer, so that changing the sampling asks
again while changing batch size, order or concurrency does not. A work unit becomes one Parquet
file whose name is the hash of the addresses in it, written aside and renamed: what a reader
sees is whole, a unit that is written twice is the same file, and a kill loses one unit at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray.config import SamplingConfig
from reki_ray.core.workspace import ROW_GROUP_ROWS, Workspace, conform
from reki_ray.errors import DataError, EngineError
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import (
    CACHED_TOKENS,
    CREATED_AT,
    ENGINE,
    FINISH_REASON,
    FLAWS,
    GENERATED_TOKENS,
    MODEL,
    PROMPT,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REASON,
    RETRY_REASON,
    REVISION,
    TEXTS,
    SubjectKind,
    Table,
)

PASS: Final = "pass"

_STRING: Final = pa.string()


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


LEDGER: Final = Table(
    "extract/ledger",
    pa.schema(
        [
            _required(PROMPT_HASH, _STRING),
            # Factor to text, "*" for a whole answer.
            _required(TEXTS, pa.map_(_STRING, _STRING)),
            _required(MODEL, _STRING),
            _required(REVISION, _STRING),
            _required(ENGINE, _STRING),
            _required(PROMPT_TOKENS, pa.int32()),
            _required(CACHED_TOKENS, pa.int32()),
            _required(GENERATED_TOKENS, pa.int32()),
            pa.field(FINISH_REASON, _STRING),
            # Factors that stay empty, each with its problem, and why the prompt was asked once
            # more, empty where it was not; null in files of earlier releases.
            pa.field(FLAWS, pa.map_(_STRING, _STRING)),
            pa.field(RETRY_REASON, _STRING),
            _required(CREATED_AT, pa.int64()),
        ]
    ),
)
"""One row an answer, under the address of its prompt; every answer ever given."""

FAILURES: Final = Table(
    "extract/failures",
    pa.schema(
        [
            _required(PROMPT_HASH, _STRING),
            _required(REASON, _STRING),
            pa.field(PROMPT, _STRING),
            # The asking in which it failed: within one asking a failure is final.
            _required(PASS, _STRING),
            _required(CREATED_AT, pa.int64()),
        ]
    ),
)
"""One row a failed prompt; kept also after a later asking has answered it."""

_COMPACT_FILES = 32
_COMPACT_ROWS = 131_072
_READERS = 8


class PromptKeys:
    """Addresses of prompts in the ledger.

    Args:
        template: What all prompts of a kind share.
        model: Model as the configuration names it, not where it happens to lie on disk.
        revision: Revision of the model.
        sampling: Sampling parameters.
        request: Further fields of a request that change its answer, JSON-ready.
    """

    def __init__(
        self,
        template: PromptTemplate,
        model: str,
        revision: str,
        sampling: SamplingConfig,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        self._template = template
        self._identity = {
            "model": model,
            "revision": revision,
            "sampling": sampling.model_dump(mode="json"),
            "request": dict(request or {}),
        }
        self._begun: dict[SubjectKind, hashlib._Hash] = {}

    def of(self, kind: SubjectKind, body: str) -> str:
        """Address of a prompt: hash of everything that determines its answer.

        Returns:
            SHA-256, 64 hexadecimal digits.
        """
        if kind not in self._begun:
            # The frame is hashed once a kind: the rest of a prompt is a tenth of it.
            identity = {**self._identity, "frame": self._template.identity(kind)}
            self._begun[kind] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        digest = self._begun[kind].copy()
        digest.update(body.encode("utf-8", errors="surrogatepass"))
        return digest.hexdigest()


class AnswerCache:
    """Answers and failures of one workspace.

    Args:
        workspace: The run's folder.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    # --- writing -------------------------------------------------------------------------------

    def append(self, answers: pa.Table, failures: pa.Table) -> None:
        """Keep one work unit; it survives a kill from here on.

        Args:
            answers: Rows of `LEDGER`.
            failures: Rows of `FAILURES`.

        Raises:
            EngineError: The workspace cannot be written.
        """
        for table, rows in ((LEDGER, answers), (FAILURES, failures)):
            if rows.num_rows:
                self._put(table, rows, prefix="unit")

    def _put(self, table: Table, rows: pa.Table, prefix: str) -> str:
        workspace = self._workspace
        assert table.schema is not None  # both tables have a fixed schema
        rows = conform(rows, table.schema, where=workspace.path(table.path))
        name = f"{prefix}-{_content(rows, table)}.parquet"
        target = workspace.path(table.path, name)
        with _writing(target), workspace.writing(table.path, name) as sink:
            pq.write_table(rows, sink, row_group_size=ROW_GROUP_ROWS)
        return name

    def compact(self) -> int:
        """Merge small files into big ones; a kill at any point loses nothing.

        Several compactors, and writers beside them, do no harm: rows that stand in two files for
        a moment have the same address and count once.

        Returns:
            Files that were merged.
        """
        merged = 0
        for table in (LEDGER, FAILURES):
            # In the order of time, in which units of one shard of the plan stand together: settling
            # then finds the answers of a shard in one or two files.
            files = sorted(self._workspace.identify(table), key=lambda file: (file[2], file[0]))
            names = [name for name, _, _ in files if name.startswith("unit-")]
            small = [self._workspace.path(table.path, name) for name in names]
            if len(small) >= _COMPACT_FILES:
                for group in self._groups(small):
                    merged += self._merge(table, group)
        return merged

    def _groups(self, parts: Sequence[str]) -> Iterator[list[str]]:
        """Files in groups of some rows; memory holds one group at a time."""
        group: list[str] = []
        rows = 0
        for part in parts:
            with self._workspace.filesystem.open(part, "rb") as source:
                rows += pq.ParquetFile(source).metadata.num_rows
            group.append(part)
            if rows >= _COMPACT_ROWS:
                yield group
                group, rows = [], 0
        if group:
            yield group

    def _merge(self, table: Table, parts: Sequence[str]) -> int:
        read = []
        for part in parts:
            with (
                contextlib.suppress(FileNotFoundError),  # another compactor was here
                self._workspace.filesystem.open(part, "rb") as source,
            ):
                read.append(_completed(pq.read_table(source)))
        if len(read) < len(parts):
            return 0
        self._put(table, pa.concat_tables(read), prefix="part")
        for part in parts:
            with contextlib.suppress(FileNotFoundError):
                self._workspace.filesystem.rm(part)
        return len(parts)

    # --- reading -------------------------------------------------------------------------------

    def index(self) -> AnswerIndex:
        """Where each answer lies.

        Raises:
            DataError: A file of the ledger is damaged.
        """
        columns = [PROMPT_HASH, PROMPT_TOKENS, GENERATED_TOKENS]
        names, tables = self._listed(columns)
        lengths = [table.num_rows for table in tables]
        digests = np.concatenate([digests_of(t[PROMPT_HASH]) for t in tables] or [_NO_DIGESTS])
        order = np.argsort(digests, kind="stable")
        tokens = [
            np.concatenate([t[c].to_numpy() for t in tables] or [_NO_ROWS])[order]
            for c in columns[1:]
        ]
        starts = [np.arange(length, dtype=np.int32) for length in lengths]
        return AnswerIndex(
            files=tuple(names),
            digests=digests[order],
            file=np.repeat(np.arange(len(names), dtype=np.int32), lengths)[order],
            row=np.concatenate(starts or [_NO_ROWS])[order],
            prompt_tokens=tokens[0],
            generated_tokens=tokens[1],
        )

    def _listed(self, columns: list[str]) -> tuple[list[str], list[pa.Table]]:
        """All files and what stands in them."""
        while True:
            names = self._workspace.parts(LEDGER)
            try:
                with ThreadPoolExecutor(_READERS) as readers:
                    return names, list(readers.map(lambda name: self.read(name, columns), names))
            except FileNotFoundError:  # merged by another run since the listing
                continue

    def read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """One file of the ledger or of the failures.

        Raises:
            DataError: It is damaged.
            FileNotFoundError: It was merged into another one.
        """
        try:
            with self._workspace.filesystem.open(path, "rb") as source:
                return _completed(pq.read_table(source, columns=columns))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"a file of the ledger is damaged: {error}",
                where=path,
                todo="Delete it and run `reki extract` again: only its answers are asked anew.",
            ) from error

    def failures(self, asking: str | None = None) -> pa.Table:
        """Failures, the latest of each prompt last.

        Args:
            asking: Only those of one asking; None reads all.

        Returns:
            Rows of `FAILURES`.
        """
        assert FAILURES.schema is not None
        tables = [self.read(part) for part in self._workspace.parts(FAILURES)]
        rows = pa.concat_tables([FAILURES.schema.empty_table(), *tables])
        if asking is not None:
            rows = rows.filter(pc.equal(rows[PASS], asking))
        return rows.sort_by(CREATED_AT)


@dataclass(frozen=True)
class AnswerIndex:
    """Address -> place of the answer; columns sorted by address, one entry an answer's row.

    Attributes:
        files: Paths of the ledger's files.
        digests: (N,) addresses, 32 bytes each.
        file: (N,) index into `files`.
        row: (N,) row in that file.
        prompt_tokens: (N,) tokens of the prompt.
        generated_tokens: (N,) tokens of the answer.
    """

    files: tuple[str, ...]
    digests: np.ndarray
    file: np.ndarray
    row: np.ndarray
    prompt_tokens: np.ndarray
    generated_tokens: np.ndarray

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Entries of addresses.

        Args:
            digests: (M,) as `digests_of` gives them.

        Returns:
            (M,) int64, -1 where there is no answer.
        """
        if not len(self.digests):
            return np.full(len(digests), -1)
        at = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[at] == digests, at, -1)


def digests_of(prompt_keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Addresses as (N,) fixed 32-byte values, a quarter of the memory of strings.

    Raises:
        DataError: One is no SHA-256 in hexadecimal digits.
    """
    try:
        joined = bytes.fromhex("".join(prompt_keys.to_pylist()))
        if len(joined) != _DIGEST_BYTES * len(prompt_keys):
            raise ValueError("an address has another length")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"prompt addresses are damaged: {error}",
            where="extract",
            todo="Run `reki extract --force extract`; a damaged ledger file must be deleted.",
        ) from error
    return np.frombuffer(joined, dtype=f"S{_DIGEST_BYTES}")


_DIGEST_BYTES = 32
_NO_DIGESTS = np.zeros(0, dtype=f"S{_DIGEST_BYTES}")
_NO_ROWS = np.zeros(0, dtype=np.int32)


def _content(rows: pa.Table, table: Table) -> str:
    digest = hashlib.sha256()
    for address in sorted(rows[PROMPT_HASH].to_pylist()):
        digest.update(address.encode())
    if table is FAILURES:  # a prompt may fail in one asking after another
        digest.update(rows[PASS][0].as_py().encode())
    return digest.hexdigest()[:32]


def _completed(rows: pa.Table) -> pa.Table:
    """Answers of an earlier release with the columns that came since, as nulls."""
    assert LEDGER.schema is not None
    if TEXTS not in rows.column_names:
        return rows
    for name in (FLAWS, RETRY_REASON):
        if name not in rows.column_names:
            nulls = pa.nulls(rows.num_rows, LEDGER.schema.field(name).type)
            rows = rows.append_column(name, nulls)
    return rows


@contextlib.contextmanager
def _writing(target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(
            f"an answer cannot be kept: {error}",
            where=os.path.dirname(target),
            todo="Free some space or mend the storage, and run again: what was kept is not asked "
            "a second time.",
        ) from error
