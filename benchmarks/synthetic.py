"""Invented users, items and interactions of any number, as stage ingest would leave them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from reki_ray import schema
from reki_ray.core.workspace import Workspace

_ADJECTIVES = ("Silver", "Hidden", "Broken", "Golden", "Silent", "Winter", "Desert", "Crystal")
_NOUNS = ("River", "Tower", "Garden", "Mirror", "Harbor", "Forest", "Bridge", "Letter")
_GENRES = np.array(["Drama", "Comedy", "Action", "Horror", "Romance", "War"])


def fill(workspace: Workspace, users: int, items: int, events: int, seed: int = 0) -> None:
    """Write the tables that prompts are made of.

    Args:
        workspace: Gets items, users, interactions and cuts.
        users: Number of users.
        items: Number of items.
        events: Interactions a user, all of them before the cut.
        seed: Seed of everything.
    """
    rng = np.random.default_rng(seed)
    item_ids = _ids("i", np.arange(items))
    user_ids = _ids("u", np.arange(users))
    workspace.write_table(
        schema.ITEMS,
        pa.table(
            {
                schema.ITEM_ID: item_ids,
                schema.TITLE: _titles(rng, items),
                schema.ATTRIBUTES: _attributes(
                    schema.ITEMS_SCHEMA,
                    genre=_GENRES[rng.integers(0, len(_GENRES), items)],
                    year=rng.integers(1930, 2020, items).astype(str),
                ),
                schema.TEXT: pa.nulls(items, pa.string()),
                schema.IMAGE: pa.nulls(items, pa.string()),
            }
        ),
    )
    workspace.write_table(
        schema.USERS,
        pa.table(
            {
                schema.USER_ID: user_ids,
                schema.ATTRIBUTES: _attributes(
                    schema.USERS_SCHEMA,
                    gender=np.array(["F", "M"])[rng.integers(0, 2, users)],
                    age=rng.integers(18, 70, users).astype(str),
                ),
                schema.TEXT: pa.nulls(users, pa.string()),
                schema.IMAGE: pa.nulls(users, pa.string()),
            }
        ),
    )
    rows = users * events
    workspace.write_table(
        schema.INTERACTIONS,
        pa.table(
            {
                schema.USER_ID: np.repeat(user_ids, events),
                schema.ITEM_ID: _ids("i", rng.integers(0, items, rows)),
                schema.TIMESTAMP: np.tile(np.arange(events), users),
                schema.RATING: rng.integers(1, 6, rows).astype(np.float32),
                schema.LABEL: rng.integers(0, 2, rows).astype(np.int8),
            }
        ),
    )
    cuts = {schema.USER_ID: user_ids, schema.CUT: np.full(users, events, np.int32)}
    workspace.write_table(schema.CUTS, pa.table(cuts))


def samples(workspace: Workspace, rows: int, positions: tuple[int, int], seed: int) -> pa.Table:
    """Samples at random.

    Args:
        workspace: One that `fill` has filled.
        rows: Number of samples.
        positions: Least length of a history, and one more than the greatest.
        seed: Seed of everything.
    """
    random = np.random.default_rng(seed)
    users = workspace.read_table(schema.USERS, columns=[schema.USER_ID])[schema.USER_ID]
    items = workspace.read_table(schema.ITEMS, columns=[schema.ITEM_ID])[schema.ITEM_ID]
    places = random.integers(*positions, rows).astype(np.int32)
    return pa.table(
        {
            schema.USER_ID: users.take(pa.array(random.integers(0, len(users), rows))),
            schema.ITEM_ID: items.take(pa.array(random.integers(0, len(items), rows))),
            schema.TIMESTAMP: pa.array(places.astype(np.int64)),
            schema.LABEL: pa.array(random.integers(0, 2, rows).astype(np.int8)),
            schema.POSITION: pa.array(places),
        }
    )


def _ids(prefix: str, numbers: np.ndarray) -> np.ndarray:
    return np.char.add(prefix, np.char.zfill(numbers.astype(str), 8))


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    first = rng.integers(0, len(_ADJECTIVES), count).tolist()
    second = rng.integers(0, len(_NOUNS), count).tolist()
    # The number keeps titles apart, and prompts with them.
    return [
        f"The {_ADJECTIVES[a]} {_NOUNS[n]} {row}"
        for row, (a, n) in enumerate(zip(first, second, strict=True))
    ]


def _attributes(table: pa.Schema, **columns: np.ndarray) -> pa.Array:
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    names = list(columns)
    pairs = [[(name, [value]) for name, value in zip(names, row, strict=True)] for row in rows]
    return pa.array(pairs, type=table.field(schema.ATTRIBUTES).type)
