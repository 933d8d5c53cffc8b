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

from reki_ray import schema
from reki_ray.core.workspace import Workspace
from reki_ray.extraction.answer_cache import PASS, AnswerCache
from reki_ray.extraction.work_units import WorkUnit, read_unit
from reki_ray.prompts.quality import problem_of

ANSWERED: Final = "answered"
DEAD: Final = "dead"
ASKED_AGAIN: Final = "asked_again"
QUARANTINED: Final = "quarantined"
_SUMMED: Final = (schema.PROMPT_TOKENS, schema.CACHED_TOKENS, schema.GENERATED_TOKENS, schema.CALLS)

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
    answered = pc.is_valid(block[schema.TEXTS])
    constants = {
        schema.MODEL: model,
        schema.REVISION: revision,
        schema.ENGINE: engine,
        PASS: attempt_id,
    }
    for name, value in {**constants, schema.CREATED_AT: now}.items():
        block = block.append_column(name, pa.repeat(value, block.num_rows))
    prompts = pc.utf8_slice_codeunits(block[schema.BODY], -_MAX_KEPT_PROMPT, None)
    block = block.append_column(schema.PROMPT, prompts)
    answers, dead = block.filter(answered), block.filter(pc.invert(answered))
    AnswerCache(Workspace(location)).append(answers, dead)
    counts: dict[str, Any] = {name: pc.sum(block[name]).as_py() or 0 for name in _SUMMED}
    counts[schema.ASKED_AT] = pc.min(block[schema.ASKED_AT]).as_py() or math.inf
    counts |= {ANSWERED: answers.num_rows, DEAD: dead.num_rows}
    counts[ASKED_AGAIN] = pc.sum(pc.not_equal(block[schema.RETRY_REASON], "")).as_py() or 0
    # As JSON: another set of problems would be another Arrow type.
    counts[QUARANTINED] = json.dumps(Counter(map(problem_of, dead[schema.REASON].to_pylist())))
    return pa.table({name: [count] for name, count in counts.items()})
