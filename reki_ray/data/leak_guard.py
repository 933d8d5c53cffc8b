"""The interactions visible to prompts, clustering and user texts: those before the cutoff."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.core.tables import rows_of
from reki_ray.core.workspace import Workspace
from reki_ray.schema import ATTRIBUTES, CUT, ITEM_ID, POSITION, TITLE, USER_ID


def before_cut(interactions: pa.Table, cuts: pa.Table) -> pa.Table:
    """Keep the first `cut` interactions of every user (the leak rule), and number them.

    Args:
        interactions: Rows of `INTERACTIONS_SCHEMA`, sorted by user, then time.
        cuts: Rows of `CUTS_SCHEMA`; a user without a row has cut 0.

    Returns:
        The rows with a column `position`, int32: index among the user's interactions.
    """
    if interactions.num_rows == 0:
        return interactions.append_column(POSITION, pa.array([], pa.int32()))
    users = pc.run_end_encode(interactions[USER_ID].combine_chunks())
    ends = np.asarray(users.run_ends, dtype=np.int64)
    lengths = np.diff(ends, prepend=0)
    cut_of = dict(zip(cuts[USER_ID].to_pylist(), cuts[CUT].to_pylist(), strict=True))
    user_cuts = np.array([cut_of.get(user, 0) for user in users.values.to_pylist()])
    position = np.arange(interactions.num_rows) - np.repeat(ends - lengths, lengths)
    numbered = interactions.append_column(POSITION, pa.array(position, pa.int32()))
    return numbered.filter(pa.array(position < np.repeat(user_cuts, lengths)))


class Visible(NamedTuple):
    """Interactions before the cutoffs of users, and id, title and attributes of their items."""

    interactions: pa.Table
    items: pa.Table


def visible_to_prompts(workspace: Workspace, users: pa.Array | pa.ChunkedArray) -> Visible:
    """Load the data visible to prompts and texts about these users."""
    interactions = before_cut(
        rows_of(workspace, schema.INTERACTIONS, USER_ID, users),
        rows_of(workspace, schema.CUTS, USER_ID, users),
    )
    seen = pc.unique(interactions[ITEM_ID])
    items = rows_of(workspace, schema.ITEMS, ITEM_ID, seen, [ITEM_ID, TITLE, ATTRIBUTES])
    return Visible(interactions, items)
