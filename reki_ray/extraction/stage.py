"""Stage extract: ask the LLM what is still unanswered, and keep every answer.

Plan -> what is pending -> ask -> ledger, work unit by work unit. A run that was cut off
resumes with what is missing; finished answers are never asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.config import RekiConfig
from reki_ray.errors import DataError, EngineError
from reki_ray.extraction.engines import Answer, Engine, Question, build_engine
from reki_ray.extraction.ledger import PLAN, Ledger, prompt_hash
from reki_ray.extraction.subjects import Subjects
from reki_ray.pipeline import StageResult
from reki_ray.progress import Reporter
from reki_ray.prompts.parse import clean
from reki_ray.prompts.render import Prompt
from reki_ray.runtime import ray_session
from reki_ray.schema import (
    ENGINE,
    FACTOR,
    FINISH_REASON,
    GENERATED_TOKENS,
    MODEL,
    PROMPT,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REASON,
    REVISION,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    WHOLE_ANSWER,
)
from reki_ray.workspace import Workspace

_MAX_KEPT_PROMPT = 8000
"""Longest prompt kept in a dead letter, characters."""


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Answer all prompts of the configuration.

    Args:
        config: The run.
        workspace: Holds ingest and, for collective knowledge, cluster; the ledger goes here.
        reporter: Shows progress and tokens per second.

    Returns:
        Subjects in, answered subjects out, dead ones, and the tokens of this plan's answers.

    Raises:
        EngineError: The engine is unavailable, or too many prompts stay without an answer.
        DataError: A table is missing or damaged.
    """
    ledger = Ledger(workspace)
    subjects = Subjects(workspace, config.prompts, config.extract.mode)
    engine = build_engine(config.extract, subjects.factors)
    with reporter.task("extract: planning", total=len(subjects), unit="prompts") as task:
        plan = _plan(subjects, engine, config, task.advance)
    ledger.write_plan(plan)
    pending = Pending(plan, ledger.answered())
    if pending.subjects:
        with ray_session(config.ray):
            _ask(pending, subjects, engine, config, ledger, reporter)
    return _result(config, engine, ledger, cache_hits=plan.num_rows - pending.rows)


class Pending:
    """Subjects whose prompt has no answer yet, by prompt hash.

    Args:
        plan: Rows of `PLAN`.
        answered: Hashes that have an answer.
    """

    def __init__(self, plan: pa.Table, answered: frozenset[str]) -> None:
        known = pa.array(sorted(answered), pa.string())
        missing = plan.filter(pc.invert(pc.is_in(plan[PROMPT_HASH], value_set=known)))
        self.rows = missing.num_rows
        self.subjects: dict[str, list[tuple[str, str]]] = {}
        for kind, subject, address in zip(
            *(missing[name].to_pylist() for name in (SUBJECT_KIND, SUBJECT_ID, PROMPT_HASH)),
            strict=True,
        ):
            self.subjects.setdefault(address, []).append((kind, subject))


@dataclass
class _Round:
    """One asking: turns answers into ledger rows, and sees that no question gets lost."""

    engine: Engine
    subjects: dict[str, list[tuple[str, str]]]
    ledger: Ledger
    factors: list[str]
    asked: set[str] = field(default_factory=set)

    def questions(self, prompts: Iterator[tuple[str, Prompt]]) -> Iterator[Question]:
        """Each pending prompt once, also where several subjects share it."""
        for address, prompt in prompts:
            if address in self.subjects and address not in self.asked:
                self.asked.add(address)
                yield Question(address, prompt.messages)

    def keep(self, unit: list[Answer]) -> int:
        """Write a work unit; returns the number of subjects it settles."""
        answers: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []
        for answer in unit:
            subjects = self.subjects.pop(answer.prompt_hash, None)
            if subjects is None:
                raise EngineError(
                    "the engine answered a question twice, or one that was not asked",
                    where=f"{self.engine.name}: {answer.prompt_hash}",
                    todo="Report this with the engine's settings; what was answered is kept.",
                )
            parsed = clean(answer.text, answer.finish_reason, answer.prompt, self.factors)
            reason = answer.error or parsed.reason
            for kind, subject in subjects:
                address = {
                    SUBJECT_KIND: kind,
                    SUBJECT_ID: subject,
                    PROMPT_HASH: answer.prompt_hash,
                }
                if reason or parsed.text is None:
                    prompt = answer.prompt[-_MAX_KEPT_PROMPT:]
                    dead.append({**address, REASON: reason, PROMPT: prompt})
                else:
                    answers.append({**address, **self._columns(answer, parsed.text)})
        self.ledger.append(answers, dead)
        return len(answers) + len(dead)

    def _columns(self, answer: Answer, text: str) -> dict[str, Any]:
        return {
            FACTOR: WHOLE_ANSWER,
            TEXT: text,
            MODEL: self.engine.model,
            REVISION: self.engine.revision,
            ENGINE: self.engine.name,
            PROMPT_TOKENS: answer.prompt_tokens,
            GENERATED_TOKENS: answer.generated_tokens,
            FINISH_REASON: answer.finish_reason,
        }

    def bury_lost(self) -> int:
        """Turn questions that never came back into dead letters."""
        lost = [Answer(address, error="the engine lost the prompt") for address in self.subjects]
        return self.keep(lost) if lost else 0


def _addressed(
    subjects: Subjects, engine: Engine, config: RekiConfig
) -> Iterator[tuple[str, Prompt]]:
    for prompt in subjects:
        yield (
            prompt_hash(prompt.messages, engine.model, engine.revision, config.extract.sampling),
            prompt,
        )


def _plan(
    subjects: Subjects, engine: Engine, config: RekiConfig, advance: Callable[[], object]
) -> pa.Table:
    columns: dict[str, list[str]] = {SUBJECT_KIND: [], SUBJECT_ID: [], PROMPT_HASH: []}
    for address, prompt in _addressed(subjects, engine, config):
        columns[SUBJECT_KIND].append(prompt.subject_kind)
        columns[SUBJECT_ID].append(prompt.subject_id)
        columns[PROMPT_HASH].append(address)
        advance()
    return pa.table(columns, schema=PLAN.schema)


def _ask(
    pending: Pending,
    subjects: Subjects,
    engine: Engine,
    config: RekiConfig,
    ledger: Ledger,
    reporter: Reporter,
) -> None:
    asking = _Round(engine, pending.subjects, ledger, subjects.factors)
    generated = 0
    with reporter.task("extract: asking", total=pending.rows, unit="prompts") as task:
        started = time.monotonic()
        # Prompts are rendered a second time instead of being held in memory since the plan.
        questions = asking.questions(_addressed(subjects, engine, config))
        for unit in engine.ask(questions, config.extract.unit_rows):
            tokens = sum(answer.generated_tokens for answer in unit)
            generated += tokens
            task.advance(asking.keep(unit), generated_tokens=tokens)
        task.advance(asking.bury_lost())
        seconds = max(time.monotonic() - started, 1e-9)
    ledger.write_statistics(
        {
            "model": engine.model,
            "generated_tokens": generated,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(generated / seconds, 2),
        }
    )


def _result(config: RekiConfig, engine: Engine, ledger: Ledger, *, cache_hits: int) -> StageResult:
    planned = ledger.plan().num_rows
    answers = ledger.current_answers()
    dead = planned - answers.num_rows
    letters = ledger.dead_letters()
    hashes = ledger.plan()[PROMPT_HASH].combine_chunks()
    buried = letters.filter(pc.is_in(letters[PROMPT_HASH], value_set=hashes))
    if dead > buried.num_rows:
        raise DataError(
            f"{dead - buried.num_rows} of {planned} subjects have neither answer nor dead letter",
            where="extract",
            todo="Run `reki extract` again: only these are asked.",
        )
    if dead > config.extract.max_dead_share * planned:
        reason = buried[REASON][-1].as_py()
        raise EngineError(
            f"{dead} of {planned} prompts have no answer (last reason: {reason})",
            where="extract.max_dead_share",
            todo="Read extract/dead, correct the cause and run again: only these are asked.",
        )
    prompt_tokens = pc.sum(answers[PROMPT_TOKENS]).as_py() or 0
    generated_tokens = pc.sum(answers[GENERATED_TOKENS]).as_py() or 0
    return StageResult(
        rows_in=planned,
        rows_out=answers.num_rows,
        dead=dead,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        details={
            "engine": engine.name,
            "model": engine.model,
            "mode": config.extract.mode,
            "prompts": planned,
            "prompt_tokens": prompt_tokens,
            "generated_tokens": generated_tokens,
            "tokens_per_second": _measured_rate(ledger, engine),
            "cache_hits": cache_hits,
            "dead": dead,
        },
    )


def _measured_rate(ledger: Ledger, engine: Engine) -> float:
    """Generated tokens a second of the last asking, start-up included; 0 for another model."""
    statistics = ledger.statistics()
    same = statistics.get("model") == engine.model
    return float(statistics["tokens_per_second"]) if same else 0.0
