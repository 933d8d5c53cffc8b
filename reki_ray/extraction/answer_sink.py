"""Both ends of the extraction pipeline, run on the cluster: questions out of work units, answers
into the answer cache."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.core.workspace import Workspace
from reki_ray.extraction.answer_cache import FAILURES, LEDGER, PASS, AnswerCache
from reki_ray.extraction.work_units import WorkUnit, read_unit
from reki_ray.prompts.quality import problem_of
from reki_ray.schema import (
    ASKED_AT,
    BODY,
    CACHED_TOKENS,
    CALLS,
    CREATED_AT,
    ENGINE,
    GENERATED_TOKENS,
    MODEL,
    PROMPT,
    PROMPT_TOKENS,
    REASON,
    RETRY_REASON,
    REVISION,
    TEXTS,
)

ANSWERED: Final = "answered"
DEAD: Final = "dead"
ASKED_AGAIN: Final = "asked_again"
QUARANTINED: Final = "quarantined"
_SUMMED: Final = (PROMPT_TOKENS, CACHED_TOKENS, GENERATED_TOKENS, CALLS)

_MAX_KEPT_PROMPT = 8000
"""Characters kept of a failed prompt, from its end."""


def questions_of(block: pa.Table, location: str) -> pa.Table:
    """Rows of `QUESTION_SCHEMA` for a block of work units, whose columns are its fields."""
    workspace = Workspace(location)
    return pa.concat_tables(read_unit(workspace, WorkUnit(**row)) for row in block.to_pylist())


def write_answers(
    block: pa.Table, *, location: str, attempt_id: str, engine: str, model: str, revision: str
) -> pa.Table:
    """Write the answers and failures of a block into the answer cache; returns a row of counts."""
    now = pa.scalar(int(time.time()), pa.int64())
    answered = pc.is_valid(block[TEXTS])
    answers = _with(block.filter(answered), {MODEL: model, REVISION: revision, ENGINE: engine})
    dead = block.filter(pc.invert(answered))
    prompts = pc.utf8_slice_codeunits(dead[BODY], -_MAX_KEPT_PROMPT, None)
    dead = _with(dead, {PASS: attempt_id}).append_column(PROMPT, prompts)
    assert LEDGER.schema is not None
    assert FAILURES.schema is not None
    stamp = {CREATED_AT: now}
    AnswerCache(Workspace(location)).append(
        _with(answers, stamp).select(LEDGER.schema.names),
        _with(dead, stamp).select(FAILURES.schema.names),
    )
    counts = {name: pc.sum(block[name]).as_py() or 0 for name in _SUMMED}
    counts[ASKED_AT] = pc.min(block[ASKED_AT]).as_py() or math.inf
    counts |= {ANSWERED: answers.num_rows, DEAD: dead.num_rows}
    counts[ASKED_AGAIN] = pc.sum(pc.not_equal(block[RETRY_REASON], "")).as_py() or 0
    # As JSON: another set of problems would be another Arrow type.
    counts[QUARANTINED] = json.dumps(Counter(map(problem_of, dead[REASON].to_pylist())))
    return pa.table({name: [count] for name, count in counts.items()})


def _with(rows: pa.Table, constants: dict[str, Any]) -> pa.Table:
    for name, value in constants.items():
        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
    return rows
