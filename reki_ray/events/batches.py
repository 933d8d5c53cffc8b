"""Events as a file that `reki update` takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
"""User, item and time as sent: what makes interactions one."""

Row = tuple[str, Interaction]
"""A user and what they did."""

KnownItems = Callable[[], pa.ChunkedArray]
"""Gives the ids of all items that an update knows."""

Holds = Callable[[pa.Table], npt.NDArray[np.bool_]]
"""Tells of which users, items and times an update holds an interaction."""


def holds_nothing(keys: pa.Table) -> npt.NDArray[np.bool_]:
    """A `Holds` before the first update."""
    return np.zeros(len(keys), dtype=bool)


class EventBatches:
    """Writes interactions in the columns that the run's configuration names.

    An update refuses a batch with too many unusable rows as a whole, so what it would set aside
    is left out here: one client that sends unknown items must not hold up all others.

    Args:
        rules: Which events are interactions.
        data: Column names and valid ranges.
        known_items: Asked anew for every batch.
        holds: Asked too: of equal interactions an update takes the latest, which must not be the
            one whose rating is only that of a rule.
    """

    def __init__(
        self,
        rules: EventRules,
        data: DataConfig,
        known_items: KnownItems,
        holds: Holds = holds_nothing,
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
        """Write a batch.

        Args:
            events: Interactions; of those with the same user, item and time `combine` says which
                one counts.
            path: Parquet file, replaced.

        Returns:
            Number of rows; without any, nothing is written.

        Raises:
            DataError: The known items cannot be read.
            OSError: The disk refuses.
        """
        rows = self._usable(events)
        if rows:
            with atomic.writing(path, mode=0o600) as sink:  # it holds user ids
                pq.write_table(self._table(rows), sink)
        return len(rows)

    def _usable(self, events: Sequence[Event]) -> list[Row]:
        distinct: dict[Key, Interaction] = {}
        for event in events:
            one, user = self._rules.interaction(event), event.user_id.strip()
            if one is None or not user or not self._data.earliest <= one.time <= self._data.latest:
                continue
            key = user, one.item_id, one.sent
            if one.time != one.sent or key in self._ahead:
                one = one._replace(time=self._first_time(key, one.time))
            distinct[key] = combine(distinct[key], one) if key in distinct else one
        items = pa.array([item for _, item, _ in distinct], pa.string())
        known = pc.is_in(items, value_set=self._known_items().combine_chunks()).to_pylist()
        rows = [
            (user, one)
            for ((user, _, _), one), is_known in zip(distinct.items(), known, strict=True)
            if is_known
        ]
        held = self._holds(_keys(rows)).tolist()
        rows = [row for row, is_held in zip(rows, held, strict=True) if row[1].own or not is_held]
        if len(rows) < len(events):
            _logger.warning(
                "%d of %d events are left out: there already, of unknown items or out of range",
                len(events) - len(rows),
                len(events),
            )
        return rows

    def _first_time(self, key: Key, time: int) -> int:
        """When an event of a sender far ahead first came: sent again, it is the same one."""
        first = self._ahead.setdefault(key, time)
        if len(self._ahead) > _MOST_AHEAD:
            del self._ahead[next(iter(self._ahead))]
        return first

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        source = self._data.source
        names = source.columns if isinstance(source, FileSource) else ColumnMapping()
        columns = {
            names.user_id: pa.array([user for user, _ in rows], pa.string()),
            names.item_id: pa.array([one.item_id for _, one in rows], pa.string()),
            # Arrow's own type knows its unit, whatever the run's own files have.
            names.timestamp: pa.array([one.time for _, one in rows], pa.timestamp("s")),
        }
        if names.rating is not None:
            columns[names.rating] = pa.array([one.rating for _, one in rows], pa.float64())
        if names.label is not None:
            labels = [int(self._rules.positive(one)) for _, one in rows]
            columns[names.label] = pa.array(labels, pa.int8())
        return pa.table(columns)


def _keys(rows: Sequence[Row]) -> pa.Table:
    return pa.table(
        {
            USER_ID: pa.array([user for user, _ in rows], pa.string()),
            ITEM_ID: pa.array([one.item_id for _, one in rows], pa.string()),
            TIMESTAMP: pa.array([one.time for _, one in rows], pa.int64()),
        }
    )


def is_whole(path: Path) -> bool:
    """Whether a batch is there and can be read to its end."""
    try:
        pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True
