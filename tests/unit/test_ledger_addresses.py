"""The ledger: content addresses, current answers, and what a kill leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from reki_ray import schema
from reki_ray.config import SamplingConfig
from reki_ray.errors import DataError
from reki_ray.extraction.ledger import PLAN, Ledger, prompt_hash
from reki_ray.prompts.render import Message
from reki_ray.workspace import Workspace

MESSAGES = (Message("system", "task"), Message("user", "subject"))
GREEDY = SamplingConfig()


def answer(subject: str, address: str, text: str = "text") -> dict[str, Any]:
    return {
        schema.SUBJECT_KIND: "item",
        schema.SUBJECT_ID: subject,
        schema.FACTOR: schema.WHOLE_ANSWER,
        schema.TEXT: text,
        schema.PROMPT_HASH: address,
        schema.MODEL: "m",
        schema.REVISION: "1",
        schema.ENGINE: "test",
        schema.PROMPT_TOKENS: 3,
        schema.GENERATED_TOKENS: 2,
        schema.FINISH_REASON: None,
    }


def letter(subject: str, address: str) -> dict[str, Any]:
    return {
        schema.SUBJECT_KIND: "item",
        schema.SUBJECT_ID: subject,
        schema.PROMPT_HASH: address,
        schema.REASON: "broken",
        schema.PROMPT: None,
    }


def plan(*rows: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            schema.SUBJECT_KIND: ["item"] * len(rows),
            schema.SUBJECT_ID: [subject for subject, _ in rows],
            schema.PROMPT_HASH: [address for _, address in rows],
        },
        schema=PLAN.schema,
    )


def test_the_address_covers_what_determines_the_answer() -> None:
    base = prompt_hash(MESSAGES, "m", "1", GREEDY)
    assert base == prompt_hash(tuple(MESSAGES), "m", "1", SamplingConfig())
    others = {
        prompt_hash(MESSAGES[::-1], "m", "1", GREEDY),
        prompt_hash(MESSAGES, "n", "1", GREEDY),
        prompt_hash(MESSAGES, "m", "2", GREEDY),
        prompt_hash(MESSAGES, "m", "1", SamplingConfig(max_tokens=7)),
        prompt_hash((Message("system", "tasks"), Message("user", "ubject")), "m", "1", GREEDY),
    }
    assert len(others - {base}) == 5


def test_an_empty_ledger_has_no_rows(workspace: Workspace) -> None:
    ledger = Ledger(workspace)
    assert ledger.answers().schema == schema.KNOWLEDGE_SCHEMA
    assert ledger.answers().num_rows == ledger.dead_letters().num_rows == 0
    assert ledger.answered() == frozenset()
    assert ledger.statistics() == {}
    with pytest.raises(DataError, match="does not exist"):
        ledger.current_answers()


def test_the_latest_answer_of_a_subject_and_prompt_counts(workspace: Workspace) -> None:
    ledger = Ledger(workspace)
    ledger.append([answer("a", "h1", "old")], [])
    ledger.append([answer("a", "h1", "new"), answer("a", "h2", "other prompt")], [])
    texts = ledger.answers()[schema.TEXT].to_pylist()
    assert texts == ["new", "other prompt"]
    assert ledger.answered() == {"h1", "h2"}


def test_current_answers_follow_the_plan(workspace: Workspace) -> None:
    ledger = Ledger(workspace)
    ledger.append([answer("a", "h1", "one"), answer("b", "h2", "two")], [])
    ledger.write_plan(plan(("a", "h2"), ("b", "h2"), ("c", "h3")))
    rows = ledger.current_answers()
    assert rows.schema == schema.KNOWLEDGE_SCHEMA
    assert rows[schema.SUBJECT_ID].to_pylist() == ["a", "b"]
    assert rows[schema.TEXT].to_pylist() == ["two", "two"]
    ledger.write_plan(plan(("a", "h1")))
    assert ledger.current_answers()[schema.TEXT].to_pylist() == ["one"]


def test_a_later_answer_revives_a_dead_letter(workspace: Workspace) -> None:
    ledger = Ledger(workspace)
    ledger.append([], [letter("a", "h1"), letter("b", "h2")])
    ledger.append([], [letter("b", "h2")])
    ledger.append([answer("a", "h1")], [])
    assert ledger.dead_letters()[schema.SUBJECT_ID].to_pylist() == ["b"]


def test_half_written_files_are_never_read(workspace: Workspace) -> None:
    ledger = Ledger(workspace)
    ledger.append([answer("a", "h1")], [letter("b", "h2")])
    for folder in ("knowledge", "dead"):
        Path(workspace.path("extract", folder, ".x.tmp")).write_bytes(b"PAR1 half")
    assert ledger.answers().num_rows == ledger.dead_letters().num_rows == 1


def test_every_unit_gets_files_of_its_own(workspace: Workspace) -> None:
    ledger = Ledger(workspace)
    for unit in range(5):
        ledger.append([answer(str(unit), f"h{unit}")], [])
    ledger.append([], [])
    names = sorted(path.name for path in Path(workspace.path("extract/knowledge")).iterdir())
    assert len(names) == len(set(names)) == 5
    assert ledger.answers()[schema.SUBJECT_ID].to_pylist() == list("01234")


def test_the_ledger_works_on_any_filesystem() -> None:
    ledger = Ledger(Workspace("memory://ledger-test"))
    ledger.append([answer("a", "h1")], [])
    ledger.write_plan(plan(("a", "h1")))
    assert ledger.current_answers().num_rows == 1
