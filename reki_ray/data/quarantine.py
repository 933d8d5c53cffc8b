"""Rows that cannot be used: why, where from, and how many are too many."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from reki_ray.config import DataConfig
from reki_ray.core.workspace import Workspace
from reki_ray.data.raw import (
    BROKEN_QUOTES,
    WRONG_ENCODING,
    WRONG_FIELDS,
    Draft,
    Kind,
    Rejected,
    quarantine_table,
)
from reki_ray.errors import ConfigError, DataError
from reki_ray.schema import QUARANTINE_SCHEMA, Table

FAILED_QUARANTINE = Table("ingest-quarantine", QUARANTINE_SCHEMA)
"""Quarantine of a failed ingest: beside the folder that a failure leaves untouched."""


class Verdict:
    """Says of each row why it is rejected; the first reason stands.

    Args:
        size: Number of rows N.

    Attributes:
        hints: Reason -> what the user can do about it, a sentence.
    """

    def __init__(self, size: int) -> None:
        self._code = np.full(size, -1, dtype=np.int16)
        self._reasons: list[str] = []
        self.hints: dict[str, str] = {}

    def reject(self, mask: np.ndarray, reason: str) -> None:
        """Reject rows that are not rejected yet.

        Args:
            mask: Rows to reject, (N,) bool.
            reason: Short and without the row's values, since rows are counted by it.
        """
        self._code[mask & (self._code < 0)] = len(self._reasons)
        self._reasons.append(reason)

    @property
    def known_reasons(self) -> list[str]:
        """Reasons that were looked for, found or not."""
        return self._reasons

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
        hints: Reason of rejected rows -> what the user can do about it, a sentence.
        known_reasons: Reasons that were looked for, found or not.
        notes: What the user should know of rows that passed, a sentence each.
    """

    kind: Kind
    rows: pa.Table
    rejected: tuple[Rejected, ...]
    rows_in: int
    files: tuple[str, ...]
    hints: Mapping[str, str] = field(default_factory=dict)
    known_reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason, most frequent first."""
        return dict(Counter(r.reason for r in self.rejected).most_common())


def settle(draft: Draft, verdict: Verdict, rows: pa.Table, notes: Iterable[str] = ()) -> Checked:
    """Divide a table by its verdict.

    Args:
        draft: The table as read.
        verdict: Of all its rows.
        rows: All rows in the table's schema; rejected ones may hold anything.
        notes: See `Checked`.

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
        hints={**raw.hints, **verdict.hints},
        known_reasons=(BROKEN_QUOTES, WRONG_ENCODING, WRONG_FIELDS, *verdict.known_reasons),
        notes=(*raw.notes, *notes),
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
    workspace: Workspace, tables: Mapping[Kind, Checked], config: DataConfig
) -> None:
    """Stop an ingest of which too much is unusable.

    Args:
        workspace: Where the quarantined rows are kept on failure, under ingest-quarantine/.
        tables: All checked tables, catalogues first.
        config: Largest allowed shares of rejected rows of any table.

    Raises:
        DataError: A table has more, or no usable row at all.
    """
    failed = [
        (checked, found) for checked in tables.values() if (found := _too_many(checked, config))
    ]
    if not failed:
        return
    save_quarantine(workspace, tables, FAILED_QUARANTINE)
    cause, problem = failed[0]  # catalogues come first: what they lack is unknown to the others
    if not cause.rejected:
        raise DataError(
            f"there are no {cause.kind}",
            where=", ".join(cause.files),
            todo="The files have a header but no row; name files that hold rows.",
        )
    reasons = cause.reasons()
    counts = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
    hints = " ".join(dict.fromkeys(cause.hints[r] for r in reasons if r in cause.hints))
    raise DataError(
        f"{problem}: {counts}",
        where=f"first at {cause.rejected[0].location}",
        todo=f"{hints} All of them lie in {workspace.path(FAILED_QUARANTINE.path)}; correct the "
        "data or their description under `data`, or raise data.max_quarantine_share, or for one "
        "reason data.max_quarantine_shares.".strip(),
    )


def _too_many(checked: Checked, config: DataConfig) -> str:
    """Which share of a table's rows is too large; empty where none is."""
    reasons = checked.reasons()
    allowed = config.max_quarantine_shares
    for reason, share in allowed.items():
        count = reasons.get(reason, 0)
        if count > share * checked.rows_in:
            of = f"{count} of {checked.rows_in} rows of {checked.kind} are unusable as {reason!r}"
            return f"{of} ({count / checked.rows_in:.1%}, allowed {share:.1%})"
    count = sum(found for reason, found in reasons.items() if reason not in allowed)
    if len(checked.rows) and count <= config.max_quarantine_share * checked.rows_in:
        return ""
    of = f"{len(checked.rejected)} of {checked.rows_in} rows of {checked.kind} are unusable"
    share = len(checked.rejected) / max(checked.rows_in, 1)
    return f"{of} ({share:.1%}, allowed {config.max_quarantine_share:.1%})"


def require_reasons(tables: Mapping[Kind, Checked], named: Iterable[str]) -> None:
    """Refuse a share that is allowed to a reason that does not exist.

    Args:
        tables: All tables of a data set, checked.
        named: Reasons that the configuration names.

    Raises:
        ConfigError: No check gives such a reason.
    """
    known = dict.fromkeys(r for checked in tables.values() for r in checked.known_reasons)
    for reason in named:
        if reason not in known:
            near = difflib.get_close_matches(reason, known, n=1, cutoff=0)
            raise ConfigError(
                f"{reason!r} is no reason of quarantine; the nearest is {near[0]!r}",
                where="data.max_quarantine_shares",
                todo=f"Name one of {'; '.join(known)}.",
            )


def quarantine_counts(tables: Mapping[Kind, Checked]) -> dict[str, dict[str, int]]:
    """Rejected rows by table and reason, for the manifest."""
    return {kind: checked.reasons() for kind, checked in tables.items()}
