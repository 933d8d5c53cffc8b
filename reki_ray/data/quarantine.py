"""Rows that cannot be used: why, where from, and how many are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reki_ray.data.raw import Draft, Kind, Rejected, quarantine_table
from reki_ray.errors import DataError
from reki_ray.schema import QUARANTINE_SCHEMA, Table
from reki_ray.workspace import Workspace

FAILED_QUARANTINE = Table("ingest-quarantine", QUARANTINE_SCHEMA)
"""Quarantine of a failed ingest: beside the folder that a failure leaves untouched."""


class Verdict:
    """Says of each row why it is rejected; the first reason stands.

    Args:
        size: Number of rows N.
    """

    def __init__(self, size: int) -> None:
        self._code = np.full(size, -1, dtype=np.int16)
        self._reasons: list[str] = []

    def reject(self, mask: np.ndarray, reason: str) -> None:
        """Reject rows that are not rejected yet.

        Args:
            mask: Rows to reject, (N,) bool.
            reason: Short and without the row's values, since rows are counted by it.
        """
        self._code[mask & (self._code < 0)] = len(self._reasons)
        self._reasons.append(reason)

    @property
    def accepted(self) -> np.ndarray:
        """Rows without a reason, (N,) bool."""
        return self._code < 0

    def reasons(self, rows: np.ndarray) -> list[str]:
        """Reasons of rejected rows.

        Args:
            rows: Row indices, (K,).
        """
        return [self._reasons[code] for code in self._code[rows]]


@dataclass(frozen=True)
class Checked:
    """A table after its checks: what is usable, and what is not.

    Args:
        kind: Which table.
        rows: Usable rows in the table's schema, in the order of the source.
        rejected: The others.
        rows_in: Rows that the source held.
        files: Files that were read.
    """

    kind: Kind
    rows: pa.Table
    rejected: tuple[Rejected, ...]
    rows_in: int
    files: tuple[str, ...]

    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason, most frequent first."""
        return dict(Counter(r.reason for r in self.rejected).most_common())


def settle(draft: Draft, verdict: Verdict, rows: pa.Table) -> Checked:
    """Divide a table by its verdict.

    Args:
        draft: The table as read.
        verdict: Of all its rows.
        rows: All rows in the table's schema; rejected ones may hold anything.

    Raises:
        DataError: The rows do not reconcile: a defect that must never pass silently.
    """
    raw = draft.raw
    bad = np.flatnonzero(~verdict.accepted)
    found = zip(bad, verdict.reasons(bad), raw.raw(bad), strict=True)
    rejected = [Rejected(raw.location(row), reason, text) for row, reason, text in found]
    checked = Checked(
        kind=raw.kind,
        rows=rows.filter(pa.array(verdict.accepted)),
        rejected=(*raw.rejected, *rejected),
        rows_in=raw.rows_in,
        files=raw.files,
    )
    if len(checked.rows) + len(checked.rejected) != checked.rows_in:
        raise DataError(
            f"{checked.rows_in} rows in, but {len(checked.rows)} out and "
            f"{len(checked.rejected)} quarantined",
            where=raw.kind,
            todo="Report this as a defect of reki-ray.",
        )
    return checked


def save_quarantine(
    workspace: Workspace,
    tables: Mapping[Kind, Checked],
    table: Table,
    *,
    part: str = "part-00000",
) -> None:
    """Write the rejected rows of all tables, also when there are none."""
    parts = [quarantine_table(kind, checked.rejected) for kind, checked in tables.items()]
    workspace.write_table(table, pa.concat_tables(parts), part=part)


def enforce_threshold(
    workspace: Workspace, tables: Mapping[Kind, Checked], max_share: float
) -> None:
    """Stop an ingest of which too much is unusable.

    Args:
        workspace: Where the quarantined rows are kept on failure, under ingest-quarantine/.
        tables: All checked tables, catalogues first.
        max_share: Largest allowed share of rejected rows of any table.

    Raises:
        DataError: A table has more, or no usable row at all.
    """
    failed = [
        c for c in tables.values() if not len(c.rows) or len(c.rejected) > max_share * c.rows_in
    ]
    if not failed:
        return
    save_quarantine(workspace, tables, FAILED_QUARANTINE)
    cause = failed[0]  # catalogues come first: what they lack is unknown to the interactions
    if not cause.rejected:
        raise DataError(
            f"there are no {cause.kind}",
            where=", ".join(cause.files),
            todo="The files have a header but no row; name files that hold rows.",
        )
    counts = "; ".join(f"{count} x {reason}" for reason, count in cause.reasons().items())
    raise DataError(
        f"{len(cause.rejected)} of {cause.rows_in} rows of {cause.kind} are unusable "
        f"({len(cause.rejected) / cause.rows_in:.1%}, allowed {max_share:.1%}): {counts}",
        where=f"first at {cause.rejected[0].location}",
        todo=f"All of them lie in {workspace.path(FAILED_QUARANTINE.path)}; correct the data or "
        "their description under `data`, or raise data.max_quarantine_share.",
    )


def quarantine_counts(tables: Mapping[Kind, Checked]) -> dict[str, dict[str, int]]:
    """Rejected rows by table and reason, for the manifest."""
    return {kind: checked.reasons() for kind, checked in tables.items()}
