"""Quarantine of unusable rows: reasons, locations and limits."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from reki_ray.config import DataConfig
from reki_ray.core.workspace import Workspace
from reki_ray.data.raw_tables import (
    BROKEN_QUOTES,
    WRONG_ENCODING,
    WRONG_FIELDS,
    MappedTable,
    RejectedRow,
    TableKind,
    quarantine_table,
)
from reki_ray.errors import ConfigError, DataError
from reki_ray.schema import QUARANTINE_SCHEMA, Table

FAILED_QUARANTINE = Table("ingest-quarantine", QUARANTINE_SCHEMA)
"""Quarantine of a failed ingest, which leaves the folder of the last output untouched."""


class Rejections:
    """Reasons for the rejection of N rows; the first reason of a row counts.

    Attributes:
        known_reasons: Reasons that were checked, with or without rows.
        hints: Reason -> a sentence on what the user can do.
    """

    def __init__(self, size: int) -> None:
        self._code = np.full(size, -1, dtype=np.int16)
        self.known_reasons: list[str] = []
        self.hints: dict[str, str] = {}

    def reject(self, mask: np.ndarray, reason: str, hint: str = "") -> None:
        """Reject the rows of a mask (N,), for a reason without values: rows are counted by it."""
        self._code[mask & (self._code < 0)] = len(self.known_reasons)
        self.known_reasons.append(reason)
        if hint:
            self.hints[reason] = hint

    @property
    def accepted(self) -> np.ndarray:
        """Rows without a reason, (N,) bool."""
        return self._code < 0

    def reasons(self, rows: np.ndarray) -> list[str]:
        """Reasons of rejected rows (K,)."""
        return [self.known_reasons[code] for code in self._code[rows]]


@dataclass(frozen=True)
class CheckedTable:
    """Usable and rejected rows of a table.

    Args:
        rows: Usable rows in the table's schema, in the order of the source.
        hints: Reason of rejected rows -> a sentence on what the user can do.
        known_reasons: Reasons that were checked, with or without rows.
        notes: Sentences on accepted rows for the user.
    """

    kind: TableKind
    rows: pa.Table
    rejected: tuple[RejectedRow, ...]
    rows_in: int
    files: tuple[str, ...]
    hints: Mapping[str, str] = field(default_factory=dict)
    known_reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason, most frequent first."""
        return dict(Counter(r.reason for r in self.rejected).most_common())


def finish_check(
    mapped: MappedTable, rejections: Rejections, rows: pa.Table, notes: Iterable[str] = ()
) -> CheckedTable:
    """Split a table as read from its rows in the table's schema; rejected ones may be invalid."""
    raw = mapped.raw
    bad = np.flatnonzero(~rejections.accepted)
    reasons = zip(bad, rejections.reasons(bad), raw.raw(bad), strict=True)
    rejected = [RejectedRow(raw.location(row), reason, text) for row, reason, text in reasons]
    checked = CheckedTable(
        kind=raw.kind,
        rows=rows.filter(pa.array(rejections.accepted)),
        rejected=(*raw.rejected, *rejected),
        rows_in=raw.rows_in,
        files=raw.files,
        hints={**raw.hints, **rejections.hints},
        known_reasons=(BROKEN_QUOTES, WRONG_ENCODING, WRONG_FIELDS, *rejections.known_reasons),
        notes=(*raw.notes, *notes),
    )
    if len(checked.rows) + len(checked.rejected) != checked.rows_in:
        raise DataError(
            f"{checked.rows_in} rows in, but {len(checked.rows)} out and "
            f"{len(checked.rejected)} quarantined",
            where=raw.kind,
            todo="Report this as a bug in reki-ray.",
        )
    return checked


def save_quarantine(
    workspace: Workspace,
    tables: Mapping[TableKind, CheckedTable],
    table: Table,
    *,
    part: str = "part-00000",
) -> None:
    """Write the rejected rows of all tables, even if there are none."""
    parts = [quarantine_table(kind, checked.rejected) for kind, checked in tables.items()]
    workspace.write_table(table, pa.concat_tables(parts), part=part)


def enforce_threshold(
    workspace: Workspace, tables: Mapping[TableKind, CheckedTable], config: DataConfig
) -> None:
    """Stop an ingest with too many unusable rows, keeping them under ingest-quarantine/.

    Raises:
        DataError: A table (catalogues first) exceeds the allowed shares, or has no usable row.
    """
    failed = [
        (checked, problem) for checked in tables.values() if (problem := _too_many(checked, config))
    ]
    if not failed:
        return
    save_quarantine(workspace, tables, FAILED_QUARANTINE)
    cause, problem = failed[0]  # catalogues come first: rows they lack are unknown to other tables
    if not cause.rejected:
        raise DataError(
            f"there are no {cause.kind}",
            where=", ".join(cause.files),
            todo="The files have a header but no rows; name files with rows.",
        )
    reasons = cause.reasons()
    counts = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
    hints = " ".join(dict.fromkeys(cause.hints[r] for r in reasons if r in cause.hints))
    raise DataError(
        f"{problem}: {counts}",
        where=f"first at {cause.rejected[0].location}",
        todo=f"{hints} All of them are in {workspace.path(FAILED_QUARANTINE.path)}; correct the "
        "data or their description under `data`, or raise data.max_quarantine_share, or for one "
        "reason data.max_quarantine_shares.".strip(),
    )


def _too_many(checked: CheckedTable, config: DataConfig) -> str:
    """Which share of a table's rows is too large, or an empty string."""
    reasons = checked.reasons()
    allowed = config.max_quarantine_shares
    for reason, share in allowed.items():
        count = reasons.get(reason, 0)
        if count > share * checked.rows_in:
            of = f"{count} of {checked.rows_in} rows of {checked.kind} are unusable as {reason!r}"
            return f"{of} ({count / checked.rows_in:.1%}, allowed {share:.1%})"
    count = sum(rows for reason, rows in reasons.items() if reason not in allowed)
    if len(checked.rows) and count <= config.max_quarantine_share * checked.rows_in:
        return ""
    of = f"{len(checked.rejected)} of {checked.rows_in} rows of {checked.kind} are unusable"
    share = len(checked.rejected) / max(checked.rows_in, 1)
    return f"{of} ({share:.1%}, allowed {config.max_quarantine_share:.1%})"


def require_reasons(tables: Mapping[TableKind, CheckedTable], named: Iterable[str]) -> None:
    """Reject configured shares of reasons that no check of the tables has.

    Raises:
        ConfigError: There is such a reason.
    """
    known = dict.fromkeys(r for checked in tables.values() for r in checked.known_reasons)
    for reason in named:
        if reason not in known:
            near = difflib.get_close_matches(reason, known, n=1, cutoff=0)
            raise ConfigError(
                f"{reason!r} is not a quarantine reason; the nearest is {near[0]!r}",
                where="data.max_quarantine_shares",
                todo=f"Use one of {'; '.join(known)}.",
            )
