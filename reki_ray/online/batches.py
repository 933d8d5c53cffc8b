"""Events as a file that `reki update` takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray import atomic
from reki_ray.config import ColumnMapping, DataConfig, FileSource
from reki_ray.online.event_log import Event
from reki_ray.online.rules import EventRules

_logger = logging.getLogger(__name__)

KnownItems = Callable[[], pa.ChunkedArray]
"""Gives the ids of all items that an update knows."""


class EventBatches:
    """Writes interactions in the columns that the run's configuration names.

    An update refuses a batch with too many unusable rows as a whole, so what it would set aside
    is left out here: one client that sends unknown items must not hold up all others.

    Args:
        rules: Which events are interactions.
        data: Column names and valid ranges.
        known_items: Asked anew for every batch.
    """

    def __init__(self, rules: EventRules, data: DataConfig, known_items: KnownItems) -> None:
        self._rules = rules
        self._data = data
        self._known_items = known_items

    def counts(self, event: Event) -> bool:
        """Whether an event is an interaction."""
        return self._rules.interaction(event) is not None

    def write(self, events: Sequence[Event], path: Path) -> int:
        """Write a batch.

        Args:
            events: Interactions; of those with the same user, item and time the last counts.
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

    def _usable(self, events: Sequence[Event]) -> list[Event]:
        data = self._data
        latest = {
            (event.user_id.strip(), event.item_id.strip(), event.timestamp): event
            for event in events
            if data.earliest <= event.timestamp <= data.latest
        }
        keys = [key for key in latest if key[0] and key[1]]
        items = pa.array([item for _, item, _ in keys], pa.string())
        known = pc.is_in(items, value_set=self._known_items().combine_chunks()).to_pylist()
        rows = [latest[key] for key, is_known in zip(keys, known, strict=True) if is_known]
        if len(rows) < len(events):
            _logger.warning(
                "%d of %d events are left out: twice there, of unknown items or out of range",
                len(events) - len(rows),
                len(events),
            )
        return rows

    def _table(self, events: Sequence[Event]) -> pa.Table:
        source = self._data.source
        names = source.columns if isinstance(source, FileSource) else ColumnMapping()
        columns = {
            names.user_id: pa.array([event.user_id for event in events], pa.string()),
            names.item_id: pa.array([event.item_id for event in events], pa.string()),
            # Arrow's own type knows its unit, whatever the run's own files have.
            names.timestamp: pa.array([event.timestamp for event in events], pa.timestamp("s")),
        }
        if names.rating is not None:
            counted = [self._rules.interaction(event) for event in events]
            ratings = [event.rating if event else None for event in counted]
            columns[names.rating] = pa.array(ratings, pa.float64())
        if names.label is not None:
            labels = [int(self._rules.positive(event)) for event in events]
            columns[names.label] = pa.array(labels, pa.int8())
        return pa.table(columns)
