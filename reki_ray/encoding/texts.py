"""Source text of items and users, without an LLM."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from reki_ray.config import PromptsConfig
from reki_ray.prompts.render import item_text, user_text
from reki_ray.schema import ATTRIBUTES, ITEM_ID, RATING, TEXT, TITLE, USER_ID

Attributes = dict[str, list[str]]


def item_texts(items: pa.Table, limits: PromptsConfig) -> list[str]:
    """Title, attributes and description of each item, in row order.

    Args:
        items: Rows of `ITEMS_SCHEMA`.
        limits: Longest title and description, characters.
    """
    columns = (items[name].to_pylist() for name in (TITLE, ATTRIBUTES, TEXT))
    return [
        item_text(title, _attributes(pairs), text, limits)
        for title, pairs, text in zip(*columns, strict=True)
    ]


def user_texts(
    users: pa.Table, visible: pa.Table, items: pa.Table, limits: PromptsConfig
) -> list[str]:
    """Profile and rated titles of each user, in row order.

    Args:
        users: Rows of `USERS_SCHEMA`.
        visible: Interactions before the cut, as `histories.before_cut` gives them.
        items: Rows of `ITEMS_SCHEMA`; an interaction with an unknown item is left out.
        limits: Longest title, characters, and longest history, interactions.
    """
    titles = dict(zip(items[ITEM_ID].to_pylist(), items[TITLE].to_pylist(), strict=True))
    histories: dict[str, list[tuple[str, float | None]]] = {}
    columns = (visible[name].to_pylist() for name in (USER_ID, ITEM_ID, RATING))
    for user, item, rating in zip(*columns, strict=True):
        if item in titles:
            histories.setdefault(user, []).append((titles[item], rating))
    rows = zip(users[USER_ID].to_pylist(), users[ATTRIBUTES].to_pylist(), strict=True)
    return [user_text(_attributes(pairs), histories.get(user, ()), limits) for user, pairs in rows]


def _attributes(pairs: Sequence[tuple[str, list[str]]] | None) -> Attributes | None:
    """A map column comes out of Arrow as pairs."""
    return None if pairs is None else dict(pairs)
