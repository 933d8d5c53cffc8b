"""Interactions per user and item: they decide on prompts of their own, and their weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from reki_ray import schema
from reki_ray.core.tables import ENTITIES
from reki_ray.core.workspace import Workspace
from reki_ray.data.leak_guard import before_cut
from reki_ray.schema import SIDES, Side

_KEY, _COUNT = "values", "counts"

Activity = dict[Side, pa.Table]
"""Interactions before the cutoff, of ids with any."""


@ray.remote
def count_visible(location: str) -> Activity:
    """Count the interactions visible to prompts, in a task: no driver holds all of them."""
    workspace = Workspace(location)
    columns = [schema.USER_ID, schema.ITEM_ID]
    visible = before_cut(
        workspace.read_table(schema.INTERACTIONS, columns=columns),
        workspace.read_table(schema.CUTS),
    )
    return {
        side: pa.Table.from_struct_array(pc.value_counts(visible[ENTITIES[side][1]]))
        for side in SIDES
    }


def own_weights(activity: Activity, side: Side, ids: Sequence[str], half: float) -> np.ndarray:
    """Weight (N,) of an id's own knowledge against its cluster's: a / (a + half), in [0, 1)."""
    counts = counts_of(activity, side, ids).astype(np.float32)
    weights: np.ndarray = counts / (counts + np.float32(half))
    return weights


def counts_of(activity: Activity, side: Side, ids: Sequence[str]) -> np.ndarray:
    """Interactions before the cutoff (N,) int64 of N ids."""
    rows = pc.index_in(pa.array(ids, pa.string()), value_set=activity[side][_KEY])
    counts: np.ndarray = activity[side][_COUNT].take(rows).fill_null(0).to_numpy()
    return counts
