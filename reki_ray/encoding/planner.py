"""What there is to encode: distinct texts that the ledger lacks, cut into work units.

Ray tasks gather the texts of one shard each into files beside the workspace's tables; the
driver sees their hashes only.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from reki_ray.config import PromptsConfig, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded
from reki_ray.core.workspace import Workspace
from reki_ray.data.interaction_counts import Activity, count_visible, own_weights
from reki_ray.encoding.shards import (
    Answer,
    TextShard,
    cut_into_shards,
    factors_of,
    knowledge_of,
    source_texts,
)
from reki_ray.encoding.vector_cache import (
    DIGEST,
    DIGEST_BYTES,
    TEXT_HASH,
    VectorIndex,
    digests_of,
    unit_name,
)
from reki_ray.errors import DataError
from reki_ray.schema import ID, SIDES, SOURCE, TEXT, WHOLE_ANSWER, Side

_SCRATCH = ".scratch-texts"
_KNOWLEDGE_HASHES: Final = "knowledge_hashes"
_SECOND_HASHES: Final = "second_hashes"
_WEIGHT: Final = "weight"
_HASH: Final = pa.binary(DIGEST_BYTES)


@dataclass(frozen=True)
class EncodeUnit:
    """A work unit: texts of one row group of a file.

    Attributes:
        name: File of its vectors in the ledger.
        path: File of its texts.
        row_group: Row group of that file.
        rows: Rows of that row group.
    """

    name: str
    path: str
    row_group: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class TextShardRows:
    """The planned ids of a shard.

    Attributes:
        ids: N ids, in the order of their table.
        texts: (N,) hashes of their source texts.
        known: (N, K) bool, whether an answer stands for the id, by factor.
        knowledge: (N, K) hashes of these answers; meaningless where there is none.
        sources: N sources of these answers.
        weights: (N, K) float32 share of these answers in the id's knowledge; 1 where it is all.
        seconds: (N, K) hashes of the answers that make up the rest; meaningless where there is
            none.
    """

    ids: list[str]
    texts: np.ndarray
    known: np.ndarray
    knowledge: np.ndarray
    sources: list[Any]
    weights: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class PlannedShard:
    """What a task found out about a shard.

    Attributes:
        side: Users or items.
        rows_path: File of its ids with the hashes of their texts.
        texts_path: File of the texts that the ledger lacks.
        distinct: (T,) hashes of all its texts.
        pending: (P,) hashes of the texts in `texts_path`, in order.
        sources: Number of ids by the source of their knowledge.
        factors: K factors of that knowledge; `WHOLE_ANSWER` alone where answers are not divided.
    """

    side: Side
    rows_path: str
    texts_path: str
    distinct: np.ndarray
    pending: np.ndarray
    sources: Counter[str]
    factors: tuple[str, ...]


@dataclass(frozen=True)
class TextPlan:
    """All texts of a stage.

    Attributes:
        shards: Side by side, in the order of the tables.
        units: What is to be encoded; no text stands in two units.
        total: Distinct texts.
        new: Distinct texts that the ledger lacks.
    """

    shards: list[PlannedShard]
    units: list[EncodeUnit]
    total: int
    new: int

    def of(self, side: Side) -> list[PlannedShard]:
        """Shards of one side, in the order of its table."""
        return [shard for shard in self.shards if shard.side == side]

    def sources(self, side: Side) -> dict[str, int]:
        """Number of a side's ids by the source of their knowledge."""
        return dict(sum((shard.sources for shard in self.of(side)), Counter()))


@dataclass(frozen=True)
class _PlanTask:
    """What every planning task needs."""

    location: str
    limits: PromptsConfig
    unit_rows: int
    with_knowledge: bool
    blend_events: float
    factors: Mapping[Side, tuple[str, ...]]


@contextlib.contextmanager
def plan_texts(
    config: RekiConfig,
    workspace: Workspace,
    index: VectorIndex,
    sides: Sequence[Side],
    reporter: Reporter,
    *,
    with_knowledge: bool,
) -> Iterator[TextPlan]:
    """Gather the texts of some sides; their files are there as long as the block runs.

    Args:
        config: The run.
        workspace: Holds the tables of stage ingest; with knowledge, of cluster and extract.
        index: What the ledger holds.
        sides: Which sides.
        reporter: Shows progress.
        with_knowledge: Gather answers as well as source texts.

    Raises:
        DataError: A table is missing or damaged, or an id's source text is blank.
    """
    shards = [shard for side in sides for shard in cut_into_shards(workspace, side)]
    scratch = workspace.path(_SCRATCH)
    _remove(workspace, scratch)  # what a killed run left
    workspace.filesystem.makedirs(scratch)
    try:
        yield _plan(config, workspace, index, shards, reporter, with_knowledge=with_knowledge)
    finally:
        _remove(workspace, scratch)


def _plan(
    config: RekiConfig,
    workspace: Workspace,
    index: VectorIndex,
    shards: list[TextShard],
    reporter: Reporter,
    *,
    with_knowledge: bool,
) -> TextPlan:
    divided = with_knowledge and config.encode.by_factor
    task = ray.put(
        _PlanTask(
            workspace.location,
            config.prompts,
            config.encode.unit_rows,
            with_knowledge,
            config.encode.blend_events,
            {side: factors_of(workspace, side) for side in SIDES} if divided else {},
        )
    )
    shared = ray.put(index)
    blending = with_knowledge and config.extract.mode == "blend"
    activity = count_visible.remote(workspace.location) if blending else None
    planned: dict[int, PlannedShard] = {}
    with reporter.task("texts: gathering", total=len(shards), unit="shards") as progress:
        calls = (
            (_plan_shard, (task, shared, activity, at, shard)) for at, shard in enumerate(shards)
        )
        for at, one in bounded(calls):
            planned[at] = one
            progress.advance()
    ordered = [planned[at] for at in sorted(planned)]
    units, new = _cut_units(ordered, config.encode.unit_rows)
    distinct = np.concatenate([np.zeros(0, DIGEST), *(shard.distinct for shard in ordered)])
    return TextPlan(ordered, units, len(np.unique(distinct)), new)


def _cut_units(shards: Sequence[PlannedShard], unit_rows: int) -> tuple[list[EncodeUnit], int]:
    """Work units of all shards, and the number of their texts; each text in its first shard."""
    pending = np.concatenate([np.zeros(0, DIGEST), *(shard.pending for shard in shards)])
    first = np.zeros(len(pending), dtype=bool)
    first[np.unique(pending, return_index=True)[1]] = True
    units = []
    start = 0
    for shard in shards:
        for group, at in enumerate(range(0, len(shard.pending), unit_rows)):
            own = first[start + at : start + min(at + unit_rows, len(shard.pending))]
            rows = np.flatnonzero(own)
            if len(rows):
                name = unit_name(shard.pending[at + rows])
                units.append(EncodeUnit(name, shard.texts_path, group, tuple(rows.tolist())))
        start += len(shard.pending)
    return units, int(first.sum())


@ray.remote
def _plan_shard(
    task: _PlanTask, index: VectorIndex, activity: Activity | None, at: int, shard: TextShard
) -> tuple[int, PlannedShard]:
    """Write the texts of a shard that the ledger lacks, and which id has which text."""
    workspace = Workspace(task.location)
    ids, texts = source_texts(workspace, shard, task.limits)
    _require_texts(ids, texts, shard)
    hashes = digests_of(texts)
    columns = {ID: pa.array(ids, pa.string()), TEXT_HASH: _hash_array(hashes)}
    everything = dict(zip(hashes.tolist(), texts, strict=True))
    sources: Counter[str] = Counter()
    factors = task.factors.get(shard.side, (WHOLE_ANSWER,))
    if task.with_knowledge:
        divided = shard.side in task.factors
        knowledge = knowledge_of(workspace, shard.side, ids, by_factor=divided)
        columns[_KNOWLEDGE_HASHES] = _answers(knowledge.answers, factors, everything)
        columns[SOURCE] = pa.array(knowledge.sources, pa.string())
        if activity is not None:
            columns[_SECOND_HASHES] = _answers(knowledge.seconds, factors, everything)
            weights = own_weights(activity, shard.side, ids, task.blend_events)
            columns[_WEIGHT] = pa.array(weights)
        sources.update(knowledge.sources)
    rows_path = _write(workspace, f"rows-{at:06d}", pa.table(columns), max(len(ids), 1))
    distinct = np.array(list(everything), dtype=DIGEST)
    pending = _pending(everything, distinct, index)
    todo = {TEXT_HASH: _hash_array(pending), TEXT: [everything[d] for d in pending.tolist()]}
    texts_path = _write(workspace, f"texts-{at:06d}", pa.table(todo), task.unit_rows)
    return at, PlannedShard(shard.side, rows_path, texts_path, distinct, pending, sources, factors)


def _answers(
    answers: Sequence[Answer | None], factors: Sequence[str], everything: dict[bytes, str]
) -> pa.Array:
    """K hashes of each of N answers, null where there is none; texts go into `everything`."""
    texts = [(answer or {}).get(factor) for answer in answers for factor in factors]
    digests = digests_of([text or "" for text in texts])
    pairs = zip(digests.tolist(), texts, strict=True)
    everything.update({digest: text for digest, text in pairs if text is not None})
    flat = _hash_array(digests, np.array([text is not None for text in texts], dtype=bool))
    return pa.FixedSizeListArray.from_arrays(flat, len(factors))


def _pending(texts: dict[bytes, str], distinct: np.ndarray, index: VectorIndex) -> np.ndarray:
    """Hashes that the ledger lacks; texts of similar length stand together and need no padding."""
    new = distinct[index.find(distinct) < 0]
    return np.array(sorted(new.tolist(), key=lambda d: (-len(texts[d]), texts[d])), dtype=DIGEST)


def read_rows(workspace: Workspace, shard: PlannedShard) -> TextShardRows:
    """The planned ids of a shard."""
    with workspace.filesystem.open(shard.rows_path, "rb") as source:
        rows = pq.read_table(source)
    ids: list[str] = rows[ID].to_pylist()
    texts = np.array(rows[TEXT_HASH].to_pylist(), dtype=DIGEST)
    if _KNOWLEDGE_HASHES not in rows.column_names:
        none = np.zeros((len(ids), 1), dtype=bool)
        alone, unused = none.astype(np.float32), texts[:, None]
        return TextShardRows(ids, texts, none, unused, ["fallback"] * len(ids), alone, unused)
    known, knowledge = _digests(rows[_KNOWLEDGE_HASHES])
    weights, seconds = np.ones(known.shape, dtype=np.float32), knowledge
    if _SECOND_HASHES in rows.column_names:
        both, seconds = _digests(rows[_SECOND_HASHES])
        weights = np.where(known & both, rows[_WEIGHT].to_numpy()[:, None], weights)
    return TextShardRows(ids, texts, known, knowledge, rows[SOURCE].to_pylist(), weights, seconds)


def _digests(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Which hashes are there (N, K) bool, and all of them (N, K)."""
    shape = (len(column), column.type.list_size)
    values = column.combine_chunks().flatten().to_pylist()
    there = np.array([value is not None for value in values], dtype=bool)
    digests = np.array([value or b"" for value in values], dtype=DIGEST)
    return there.reshape(shape), digests.reshape(shape)


def _require_texts(ids: Sequence[str], texts: Sequence[str], shard: TextShard) -> None:
    blank = [key for key, text in zip(ids, texts, strict=True) if not text.strip()]
    if blank:
        raise DataError(
            f"{len(blank)} {shard.side} have a blank source text, which has no representation",
            where=f"id {blank[0]}, {shard.path}",
            todo="Give them a title, an attribute or a description, and run `reki ingest` again.",
        )


def _hash_array(digests: np.ndarray, there: np.ndarray | None = None) -> pa.Array:
    raw = np.ascontiguousarray(digests, dtype=DIGEST).tobytes()
    values = [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]
    if there is not None:
        return pa.array([v if t else None for v, t in zip(values, there, strict=True)], _HASH)
    return pa.array(values, _HASH)


def _write(workspace: Workspace, name: str, rows: pa.Table, group: int) -> str:
    with workspace.writing(_SCRATCH, f"{name}.parquet") as sink:
        pq.write_table(rows, sink, row_group_size=group)
    return workspace.path(_SCRATCH, f"{name}.parquet")


def _remove(workspace: Workspace, path: str) -> None:
    if workspace.filesystem.exists(path):
        workspace.filesystem.rm(path, recursive=True)
