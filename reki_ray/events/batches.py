"""Events as a file for `reki update`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray.config import ColumnMapping, DataConfig, FileSource
from reki_ray.core import atomic
from reki_ray.events.event_mapping import EventRules, Interaction, combine
from reki_ray.events.log import Event
from reki_ray.schema import ITEM_ID, TIMESTAMP, USER_ID

_MOST_AHEAD: Final = 50_000

_logger = logging.getLogger(__name__)

Key = tuple[str, str, int]
"""User, item and time as sent: the identity of an interaction."""

Row = tuple[str, Interaction]
"""A user and their interaction."""

KnownItems = Callable[[], pa.ChunkedArray]
"""Returns the ids of all items known to an update."""

Holds = Callable[[pa.Table], npt.NDArray[np.bool_]]
"""Mask of the users, items and times of which an update already holds an interaction."""


class EventBatches:
    """Writes interactions under the column names of the run's configuration.

    An update rejects a batch with too many unusable rows as a whole. Such rows are dropped here, so
    that a client with unknown items does not hold up all others. Of equal interactions an update
    takes the latest, which must not replace a sent rating by that of a rule: `holds` finds those.
    """

    def __init__(
        self,
        rules: EventRules,
        data: DataConfig,
        known_items: KnownItems,
        holds: Holds = lambda keys: np.zeros(len(keys), dtype=bool),
    ) -> None:
        self._rules = rules
        self._data = data
        self._known_items = known_items
        self._holds = holds
        self._ahead: dict[Key, int] = {}

    def counts(self, event: Event) -> bool:
        """Whether an event is an interaction."""
        return self._rules.interaction(event) is not None

    def write(self, events: Sequence[Event], path: Path) -> int:
        """Write a batch to a Parquet file, replacing it; returns the number of rows.

        `combine` merges events of the same user, item and time. Without rows no file is written.
        """
        rows = self._usable(events)
        if rows:
            with atomic.writing(path, mode=0o600) as sink:  # it holds user ids
                pq.write_table(self._table(rows), sink)
        return len(rows)

    def _usable(self, events: Sequence[Event]) -> list[Row]:
        distinct: dict[Key, Interaction] = {}
        for event in events:
            new, user = self._rules.interaction(event), event.user_id.strip()
            if new is None or not user or not self._data.earliest <= new.time <= self._data.latest:
                continue
            key = user, new.item_id, new.sent
            if new.time != new.sent or key in self._ahead:
                new = new._replace(time=self._first_time(key, new.time))
            distinct[key] = combine(distinct[key], new) if key in distinct else new
        rows = [(user, interaction) for (user, _, _), interaction in distinct.items()]
        items = pa.array([row.item_id for _, row in rows], pa.string())
        known = pc.is_in(items, value_set=self._known_items().combine_chunks()).to_pylist()
        rows = list(compress(rows, known))
        keys = {
            USER_ID: pa.array([user for user, _ in rows], pa.string()),
            ITEM_ID: pa.array([row.item_id for _, row in rows], pa.string()),
            TIMESTAMP: pa.array([row.time for _, row in rows], pa.int64()),
        }
        held = self._holds(pa.table(keys))
        rows = [row for row, is_held in zip(rows, held, strict=True) if row[1].own or not is_held]
        dropped = len(events) - len(rows)
        if dropped:
            reasons = "duplicate, with an unknown item or out of range"
            _logger.warning("dropped %d of %d events: %s", dropped, len(events), reasons)
        return rows

    def _first_time(self, key: Key, time: int) -> int:
        """First arrival of an event from a sender far ahead: sent again, it is the same event."""
        first = self._ahead.setdefault(key, time)
        if len(self._ahead) > _MOST_AHEAD:
            del self._ahead[next(iter(self._ahead))]
        return first

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        source = self._data.source
        names = source.columns if isinstance(source, FileSource) else ColumnMapping()
        columns = {
            names.user_id: pa.array([user for user, _ in rows], pa.string()),
            names.item_id: pa.array([row.item_id for _, row in rows], pa.string()),
            # Arrow's type carries its unit, whatever the unit of the run's files.
            names.timestamp: pa.array([row.time for _, row in rows], pa.timestamp("s")),
        }
        if names.rating is not None:
            columns[names.rating] = pa.array([row.rating for _, row in rows], pa.float64())
        if names.label is not None:
            labels = [int(self._rules.positive(row)) for _, row in rows]
            columns[names.label] = pa.array(labels, pa.int8())
        return pa.table(columns)


def is_whole(path: Path) -> bool:
    """Whether a batch exists and is readable to its end."""
    try:
        pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True
