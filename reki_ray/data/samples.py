"""Builds the tables of the split from checked interactions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.config import SplitConfig
from reki_ray.data.splits import COLD_DROPPED, Timeline, divide
from reki_ray.data.wide_strings import narrow, take_rows, wide
from reki_ray.errors import DataError
from reki_ray.schema import (
    CUT,
    CUTS_SCHEMA,
    ITEM_ID,
    POSITION,
    SAMPLES_SCHEMA,
    SPLITS,
    TIMESTAMP,
    USER_ID,
    Split,
)


@dataclass(frozen=True)
class SampleTables:
    """Tables of a division.

    Args:
        samples: A table per split, sorted like the interactions.
        cold_dropped: Training and validation samples dropped for their cold item.
    """

    cuts: pa.Table
    samples: dict[Split, pa.Table]
    cold_dropped: int


def sort_interactions(interactions: pa.Table) -> pa.Table:
    """Sort by user, then time; equal times keep the order of the source."""
    users = interactions.column(USER_ID)
    rank = _index(users, _sorted_ids(users))
    seconds = interactions.column(TIMESTAMP).to_numpy()
    return take_rows(interactions, np.lexsort((seconds, rank)))  # lexsort is stable


def build_samples(
    interactions: pa.Table, users: pa.Array, items: pa.Array, config: SplitConfig
) -> SampleTables:
    """Divide interactions, sorted by `sort_interactions`, by the rules of section `split`.

    Raises:
        DataError: A split has no sample.
    """
    # Sorted ids make the draw independent of the order of the files.
    users, items = _sorted_ids(users), _sorted_ids(items)
    timeline = Timeline(
        user=_index(interactions.column(USER_ID), users),
        timestamp=interactions.column(TIMESTAMP).to_numpy(),
        item=_index(interactions.column(ITEM_ID), items),
        users=len(users),
        items=len(items),
    )
    cuts, code = divide(timeline, config)
    position = pa.array(timeline.position.astype(np.int32))
    rows = interactions.append_column(POSITION, position).select(SAMPLES_SCHEMA.names)
    samples: dict[Split, pa.Table] = {
        split: rows.filter(pa.array(code == index)) for index, split in enumerate(SPLITS)
    }
    empty = [split for split in SPLITS if not len(samples[split])]
    if empty:
        raise DataError(
            f"no samples for {', '.join(empty)}: {len(interactions)} interactions of "
            f"{len(users)} users are too few for this division",
            where="split",
            todo="Use more data, a shorter split.prompt_history, or another split.method.",
        )
    columns = {USER_ID: narrow(users, pa.string()), CUT: cuts.astype(np.int32)}
    cold_dropped = int(np.count_nonzero(code == COLD_DROPPED))
    return SampleTables(pa.table(columns, schema=CUTS_SCHEMA), samples, cold_dropped)


def _sorted_ids(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    unique = pc.unique(wide(ids))
    return unique.take(pc.sort_indices(unique))


def _index(values: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """Index of each value among sorted ids, (N,) int64."""
    indices: np.ndarray = pc.index_in(values.cast(ids.type), value_set=ids).to_numpy()
    return indices.astype(np.int64)
