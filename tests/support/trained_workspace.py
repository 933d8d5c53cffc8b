"""A tiny workspace with all tables that training reads, made without any earlier stage."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from reki_ray import schema
from reki_ray.core.workspace import Workspace
from reki_ray.schema import Split

USERS, ITEMS, EVENTS, CUT, DIMENSION = 30, 40, 20, 5, 8
GENRES = ("Action", "Comedy", "Drama", "Horror")


def fill(workspace: Workspace, seed: int = 0, labels_of: Mapping[Split, int] | None = None) -> None:
    """Users 0-23 train, 24-26 validate, 27-29 test; a user likes the items of one genre.

    Args:
        workspace: Where to.
        seed: Of all that is random.
        labels_of: Splits whose samples all have one label, and which.
    """
    generator = np.random.default_rng(seed)
    _write_entities(workspace)
    rows = []
    for user in range(USERS):
        for position, item in enumerate(generator.permutation(ITEMS)[:EVENTS]):
            liked = item % 4 == user % 4 or generator.random() < 0.15
            rows.append((f"u{user:02}", f"m{item:02}", 1000 + position, 5.0 if liked else 2.0))
    columns = list(zip(*rows, strict=True))
    names = [schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP, schema.RATING]
    table = pa.table(dict(zip(names, (pa.array(column) for column in columns), strict=True)))
    labels = pa.array((np.array(columns[3]) > 3).astype(np.int8))
    table = table.append_column(schema.LABEL, labels)
    workspace.write_table(schema.INTERACTIONS, table)
    positions = np.tile(np.arange(EVENTS), USERS)
    table = table.append_column(schema.POSITION, pa.array(positions.astype(np.int32)))
    users = np.repeat(np.arange(USERS), EVENTS)
    bounds = {"train": (0, 24), "valid": (24, 27), "test": (27, 30)}
    for split in schema.SPLITS:
        first, last = bounds[split]
        chosen = (users >= first) & (users < last) & (positions >= CUT)
        samples = table.filter(pa.array(chosen))
        if labels_of and split in labels_of:
            column = samples.column_names.index(schema.LABEL)
            same = pa.array(np.full(len(samples), labels_of[split], dtype=np.int8))
            samples = samples.set_column(column, schema.LABEL, same)
        workspace.write_table(schema.SAMPLES[split], samples)
    for side in schema.SIDES:
        ids = user_ids() if side == "users" else item_ids()
        for tables in (schema.REPRESENTATIONS, schema.TEXT_REPRESENTATIONS):
            workspace.write_table(tables[side], vectors(ids, generator))


def user_ids() -> list[str]:
    return [f"u{user:02}" for user in range(USERS)]


def item_ids() -> list[str]:
    return [f"m{item:02}" for item in range(ITEMS)]


def vectors(ids: list[str], generator: np.random.Generator) -> pa.Table:
    values = generator.normal(size=(len(ids), DIMENSION)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    flat = pa.array(values.reshape(-1))
    return pa.table(
        {
            schema.ID: pa.array(ids),
            schema.FACTOR: pa.array([schema.WHOLE_ANSWER] * len(ids)),
            schema.VECTOR: pa.FixedSizeListArray.from_arrays(flat, DIMENSION),
            schema.SOURCE: pa.array(["individual"] * len(ids)),
        }
    )


def _write_entities(workspace: Workspace) -> None:
    kind = schema.USERS_SCHEMA.field(schema.ATTRIBUTES).type
    users = [[("gender", ["FM"[user % 2]])] for user in range(USERS)]
    items = [[("genre", [GENRES[item % 4]])] for item in range(ITEMS)]
    nothing = pa.nulls(USERS, pa.string())
    workspace.write_table(
        schema.USERS,
        pa.table(
            {
                schema.USER_ID: pa.array(user_ids()),
                schema.ATTRIBUTES: pa.array(users, type=kind),
                schema.TEXT: nothing,
                schema.IMAGE: nothing,
            }
        ),
    )
    nothing = pa.nulls(ITEMS, pa.string())
    workspace.write_table(
        schema.ITEMS,
        pa.table(
            {
                schema.ITEM_ID: pa.array(item_ids()),
                schema.TITLE: pa.array([f"film {item}" for item in range(ITEMS)]),
                schema.ATTRIBUTES: pa.array(items, type=kind),
                schema.TEXT: nothing,
                schema.IMAGE: nothing,
            }
        ),
    )
