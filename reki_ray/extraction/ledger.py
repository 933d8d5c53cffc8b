"""The ledger of every answer: append-only, content-addressed, never asked twice.

A prompt's hash covers all that determines its answer, so that changing the sampling asks
again while changing the batch size does not. Each finished work unit becomes Parquet files
under new names, written aside and renamed: what a reader sees is whole, and what was finished
before a kill is kept.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray import schema
from reki_ray.config import SamplingConfig
from reki_ray.prompts.render import TEMPLATE_VERSION, Message
from reki_ray.schema import (
    CREATED_AT,
    DEAD_LETTERS,
    KNOWLEDGE,
    PROMPT_HASH,
    SUBJECT_ID,
    SUBJECT_KIND,
    Table,
)
from reki_ray.workspace import Workspace, conform

PLAN: Final = Table(
    "extract/plan",
    pa.schema(
        [
            pa.field(SUBJECT_KIND, pa.string(), nullable=False),
            pa.field(SUBJECT_ID, pa.string(), nullable=False),
            pa.field(PROMPT_HASH, pa.string(), nullable=False),
        ]
    ),
)
"""What the current configuration asks: one row a subject."""

STATISTICS: Final = "extract/statistics.json"
"""What the last asking measured, by model and revision."""


def prompt_hash(
    messages: Sequence[Message], model: str, revision: str, sampling: SamplingConfig
) -> str:
    """Address of an answer: hash of everything that determines it.

    Args:
        messages: The rendered prompt.
        model: Model as the configuration names it, not where it happens to lie on disk.
        revision: Revision of the model.
        sampling: Sampling parameters.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    identity = {
        "messages": [[message.role, message.content] for message in messages],
        "model": model,
        "revision": revision,
        "sampling": sampling.model_dump(mode="json"),
        "template": TEMPLATE_VERSION,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Ledger:
    """Answers, dead letters and the current plan of one workspace.

    Args:
        workspace: The run's folder.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    # --- writing -------------------------------------------------------------------------------

    def append(
        self, answers: Sequence[Mapping[str, Any]], dead: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep one work unit; it survives a kill from here on.

        Args:
            answers: Rows of `KNOWLEDGE_SCHEMA`, without `created_at`.
            dead: Rows of `DEAD_LETTERS_SCHEMA`, without `created_at`.
        """
        # Names begin with the time, so that name order is the order of writing.
        part = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
        for table, rows in ((KNOWLEDGE, answers), (DEAD_LETTERS, dead)):
            if rows:
                stamped = [{**row, CREATED_AT: int(time.time())} for row in rows]
                self._put(table, pa.Table.from_pylist(stamped, schema=table.schema), part)

    def write_plan(self, rows: pa.Table) -> None:
        """Replace the plan.

        Args:
            rows: Rows of `PLAN`.
        """
        self._put(PLAN, rows, "part-00000")

    def _put(self, table: Table, rows: pa.Table, part: str) -> None:
        workspace = self._workspace
        assert table.schema is not None  # all three tables have a fixed schema
        rows = conform(rows, table.schema, where=workspace.path(table.path))
        workspace.filesystem.makedirs(workspace.path(table.path), exist_ok=True)
        target = workspace.path(table.path, f"{part}.parquet")
        if not workspace.is_local:  # an object store's put is atomic by itself
            with workspace.filesystem.open(target, "wb") as sink:
                pq.write_table(rows, sink)
            return
        scratch = Path(workspace.path(table.path, f".{part}.tmp"))
        pq.write_table(rows, scratch)
        scratch.replace(target)

    # --- reading -------------------------------------------------------------------------------

    def answers(self) -> pa.Table:
        """All answers ever kept, the latest for each subject, factor and prompt.

        Returns:
            Rows of `KNOWLEDGE_SCHEMA`.
        """
        rows = self._read(KNOWLEDGE)
        return _latest(rows, [SUBJECT_KIND, SUBJECT_ID, schema.FACTOR, PROMPT_HASH])

    def plan(self) -> pa.Table:
        """The current plan: rows of `PLAN`.

        Raises:
            DataError: Stage extract has not planned yet.
        """
        return self._workspace.read_table(PLAN)

    def current_answers(self) -> pa.Table:
        """The answers that the current plan asks for, one row a planned subject and factor.

        Subjects whose prompts are equal share one answer; each gets a row of its own.

        Returns:
            Rows of `KNOWLEDGE_SCHEMA`; planned subjects without an answer are missing.

        Raises:
            DataError: Stage extract has not planned yet.
        """
        answers = _latest(self._read(KNOWLEDGE), [PROMPT_HASH, schema.FACTOR])
        joined = self.plan().join(
            answers.drop_columns([SUBJECT_KIND, SUBJECT_ID]), PROMPT_HASH, join_type="inner"
        )
        joined = joined.select(schema.KNOWLEDGE_SCHEMA.names)
        order = [(name, "ascending") for name in (SUBJECT_KIND, SUBJECT_ID, schema.FACTOR)]
        return conform(
            joined.sort_by(order), schema.KNOWLEDGE_SCHEMA, where=self._workspace.path("extract")
        )

    def answered(self) -> frozenset[str]:
        """Hashes of all prompts that have an answer."""
        return frozenset(self._read(KNOWLEDGE, [PROMPT_HASH])[PROMPT_HASH].to_pylist())

    def dead_letters(self) -> pa.Table:
        """Prompts that failed and have not been answered since, the latest failure of each.

        Returns:
            Rows of `DEAD_LETTERS_SCHEMA`.
        """
        rows = _latest(self._read(DEAD_LETTERS), [SUBJECT_KIND, SUBJECT_ID, PROMPT_HASH])
        answered = pa.array(sorted(self.answered()), pa.string())
        return rows.filter(pc.invert(pc.is_in(rows[PROMPT_HASH], value_set=answered)))

    def _read(self, table: Table, columns: list[str] | None = None) -> pa.Table:
        assert table.schema is not None  # all three tables have a fixed schema
        if self._workspace.has_table(table):
            return self._workspace.read_table(table, columns=columns)
        names = columns or table.schema.names
        return pa.schema([table.schema.field(name) for name in names]).empty_table()

    # --- figures -------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """What the last asking measured; empty before the first."""
        if not self._workspace.exists(STATISTICS):
            return {}
        content: dict[str, Any] = self._workspace.read_json(STATISTICS)
        return content

    def write_statistics(self, content: Mapping[str, Any]) -> None:
        """Keep what an asking measured, for runs that find every answer already here."""
        self._workspace.write_json(STATISTICS, dict(content))


def _latest(rows: pa.Table, key: Iterable[str]) -> pa.Table:
    """Last row of every key; parts are read in name order, which is the order of writing."""
    index = "__row"
    numbered = rows.append_column(index, pa.array(np.arange(rows.num_rows)))
    last = numbered.group_by(list(key)).aggregate([(index, "max")])[f"{index}_max"]
    return rows.take(pa.array(np.sort(last.to_numpy())))
