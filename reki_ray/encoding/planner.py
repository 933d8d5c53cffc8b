"""What there is to encode: distinct texts that the cache lacks, cut into work units.

Ray tasks gather the texts of one shard each, a row group, into files beside the workspace's
tables; the driver holds only their hashes.
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

from reki_ray.config import RekiConfig
from reki_ray.core.content_store import (
    DIGEST,
    DIGEST_BYTES,
    ContentIndex,
    digest_bytes,
    digest_texts,
)
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded
from reki_ray.core.tables import ENTITIES, RowGroup, row_groups
from reki_ray.core.workspace import Workspace
from reki_ray.data.interaction_counts import Activity, count_visible, own_weights
from reki_ray.encoding.shards import Answer, factors_of, knowledge_of, source_texts
from reki_ray.encoding.vector_cache import TEXT_HASH, unit_name
from reki_ray.errors import DataError
from reki_ray.schema import ID, SIDES, SOURCE, TEXT, WHOLE_ANSWER, Side

_SCRATCH = ".scratch-texts"
_KNOWLEDGE_HASHES: Final = "knowledge_hashes"
_SECOND_HASHES: Final = "second_hashes"
_WEIGHT: Final = "weight"
_HASH: Final = pa.binary(DIGEST_BYTES)


@dataclass(frozen=True)
class EncodeUnit:
    """Some rows of one row group in a file of texts.

    Attributes:
        name: File of the vectors in the cache.
        path: File of the texts.
        rows: Of the row group.
    """

    name: str
    path: str
    row_group: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class ShardTexts:
    """Hashes of the texts of N ids, in the order of their table.

    Attributes:
        texts: (N,) hashes of source texts.
        known: (N, K) bool, whether an answer names the factor.
        knowledge: (N, K) hashes of these answers, where known.
        sources: N sources of these answers.
        weights: (N, K) float32 weight of these answers; 1 without a second one.
        seconds: (N, K) hashes of second answers, where the weight is below 1.
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
    """Texts of one row group of a side.

    Attributes:
        rows_path: File of ids with the hashes of their texts, see `read_rows`.
        texts_path: File of the texts that the cache lacks.
        distinct: (T,) hashes of all texts.
        pending: (P,) hashes of the texts in `texts_path`, in order.
        sources: Number of ids by the source of their knowledge.
        factors: K factors of that knowledge; `WHOLE_ANSWER` alone for undivided answers.
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
        units: Texts to encode; no text is in two units.
        total: Distinct texts.
        new: Distinct texts that the cache lacks.
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
    """What all planning tasks share."""

    location: str
    config: RekiConfig
    with_knowledge: bool
    factors: Mapping[Side, tuple[str, ...]]


@contextlib.contextmanager
def plan_texts(
    config: RekiConfig,
    workspace: Workspace,
    index: ContentIndex,
    sides: Sequence[Side],
    reporter: Reporter,
    *,
    with_knowledge: bool,
) -> Iterator[TextPlan]:
    """Gather the texts of some sides; their files exist while the block runs.

    Args:
        index: Index of the vector cache.
        with_knowledge: Gather answers as well as source texts.

    Raises:
        DataError: A table is missing or damaged, or an id's source text is blank.
    """
    shards = [(side, g) for side in sides for g in row_groups(workspace, ENTITIES[side][0])]
    divided = with_knowledge and config.encode.by_factor
    factors = {side: factors_of(workspace, side) for side in SIDES} if divided else {}
    workspace.remove(_SCRATCH)  # left by a killed run
    workspace.filesystem.makedirs(workspace.path(_SCRATCH))
    try:
        task = ray.put(_PlanTask(workspace.location, config, with_knowledge, factors))
        shared = ray.put(index)
        blending = with_knowledge and config.extract.mode == "blend"
        activity = count_visible.remote(workspace.location) if blending else None
        planned: dict[int, PlannedShard] = {}
        with reporter.task("texts: gathering", total=len(shards), unit="shards") as progress:
            calls = (
                (_plan_shard, (task, shared, activity, number, side, group))
                for number, (side, group) in enumerate(shards)
            )
            for number, shard in bounded(calls):
                planned[number] = shard
                progress.advance()
        ordered = [planned[number] for number in range(len(planned))]
        units, new = _cut_units(ordered, config.encode.unit_rows)
        distinct = np.concatenate([np.zeros(0, DIGEST), *(shard.distinct for shard in ordered)])
        yield TextPlan(ordered, units, len(np.unique(distinct)), new)
    finally:
        workspace.remove(_SCRATCH)


def _cut_units(shards: Sequence[PlannedShard], unit_rows: int) -> tuple[list[EncodeUnit], int]:
    """Work units of all shards, and the number of their texts; each text in its first shard."""
    pending = np.concatenate([np.zeros(0, DIGEST), *(shard.pending for shard in shards)])
    first = np.zeros(len(pending), dtype=bool)
    first[np.unique(pending, return_index=True)[1]] = True
    units = []
    offset = 0
    for shard in shards:
        for group, start in enumerate(range(0, len(shard.pending), unit_rows)):
            stop = min(start + unit_rows, len(shard.pending))
            rows = np.flatnonzero(first[offset + start : offset + stop])
            if len(rows):
                name = unit_name(shard.pending[start + rows])
                units.append(EncodeUnit(name, shard.texts_path, group, tuple(rows.tolist())))
        offset += len(shard.pending)
    return units, int(first.sum())


@ray.remote
def _plan_shard(
    task: _PlanTask,
    index: ContentIndex,
    activity: Activity | None,
    number: int,
    side: Side,
    group: RowGroup,
) -> tuple[int, PlannedShard]:
    """Write the texts of a shard that the cache lacks, and which id has which text."""
    workspace, config = Workspace(task.location), task.config
    ids, texts = source_texts(workspace, side, group, config.prompts)
    blank = [key for key, text in zip(ids, texts, strict=True) if not text.strip()]
    if blank:
        raise DataError(
            f"{len(blank)} {side} have a blank source text, which has no representation",
            where=f"id {blank[0]}, {group.path}",
            todo="Give them a title, an attribute or a description, and run `reki ingest` again.",
        )
    hashes = digest_texts(texts)
    columns = {ID: pa.array(ids, pa.string()), TEXT_HASH: pa.array(digest_bytes(hashes), _HASH)}
    text_of = dict(zip(hashes.tolist(), texts, strict=True))
    sources = Counter[str]()
    factors = task.factors.get(side, (WHOLE_ANSWER,))
    if task.with_knowledge:
        knowledge = knowledge_of(workspace, side, ids, by_factor=side in task.factors)
        columns[_KNOWLEDGE_HASHES] = _hash_answers(knowledge.answers, factors, text_of)
        columns[SOURCE] = pa.array(knowledge.sources, pa.string())
        if activity is not None:
            columns[_SECOND_HASHES] = _hash_answers(knowledge.seconds, factors, text_of)
            weights = own_weights(activity, side, ids, config.encode.blend_events)
            columns[_WEIGHT] = pa.array(weights)
        sources.update(knowledge.sources)
    rows_path = _write(workspace, f"rows-{number:06d}", columns, max(len(ids), 1))
    distinct = np.array(list(text_of), dtype=DIGEST)
    new: list[bytes] = distinct[index.find(distinct) < 0].tolist()
    # Texts of similar length are encoded together and need no padding.
    new.sort(key=lambda digest: (-len(text_of[digest]), text_of[digest]))
    pending = np.array(new, dtype=DIGEST)
    columns = {
        TEXT_HASH: pa.array(digest_bytes(pending), _HASH),
        TEXT: pa.array([text_of[digest] for digest in new], pa.string()),
    }
    texts_path = _write(workspace, f"texts-{number:06d}", columns, config.encode.unit_rows)
    return number, PlannedShard(side, rows_path, texts_path, distinct, pending, sources, factors)


def _hash_answers(
    answers: Sequence[Answer | None], factors: Sequence[str], text_of: dict[bytes, str]
) -> pa.Array:
    """K hashes of each of N answers, null for a missing one; adds the texts to `text_of`."""
    texts = [(answer or {}).get(factor) for answer in answers for factor in factors]
    digests = digest_texts([text or "" for text in texts])
    pairs = zip(digests.tolist(), texts, strict=True)
    text_of.update({digest: text for digest, text in pairs if text is not None})
    missing = np.array([text is None for text in texts], dtype=bool)
    flat = pa.array(np.array(digest_bytes(digests), object), _HASH, mask=missing)
    return pa.FixedSizeListArray.from_arrays(flat, len(factors))


def _write(workspace: Workspace, name: str, columns: dict[str, pa.Array], group_rows: int) -> str:
    with workspace.writing(_SCRATCH, f"{name}.parquet") as sink:
        pq.write_table(pa.table(columns), sink, row_group_size=group_rows)
    return workspace.path(_SCRATCH, f"{name}.parquet")


def read_rows(workspace: Workspace, shard: PlannedShard) -> ShardTexts:
    """Read the ids of a shard with the hashes of their texts."""
    with workspace.filesystem.open(shard.rows_path, "rb") as source:
        rows = pq.read_table(source)
    ids: list[str] = rows[ID].to_pylist()
    texts = np.array(rows[TEXT_HASH].to_pylist(), dtype=DIGEST)
    if _KNOWLEDGE_HASHES not in rows.column_names:
        known = np.zeros((len(ids), 1), dtype=bool)
        unused, weights = texts[:, None], known.astype(np.float32)
        return ShardTexts(ids, texts, known, unused, ["fallback"] * len(ids), weights, unused)
    known, knowledge = _read_hashes(rows[_KNOWLEDGE_HASHES])
    weights, seconds = np.ones(known.shape, dtype=np.float32), knowledge
    if _SECOND_HASHES in rows.column_names:
        has_second, seconds = _read_hashes(rows[_SECOND_HASHES])
        weights = np.where(known & has_second, rows[_WEIGHT].to_numpy()[:, None], weights)
    return ShardTexts(ids, texts, known, knowledge, rows[SOURCE].to_pylist(), weights, seconds)


def _read_hashes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Which hashes are valid, (N, K) bool, and all of them, (N, K)."""
    shape = (len(column), column.type.list_size)
    values = column.combine_chunks().flatten().to_pylist()
    valid = np.array([value is not None for value in values], dtype=bool)
    digests = np.array([value or b"" for value in values], dtype=DIGEST)
    return valid.reshape(shape), digests.reshape(shape)
