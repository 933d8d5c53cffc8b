"""A scripted engine that notes every call and dies on purpose, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import ray.actor

from benchmarks import synthetic
from reki_ray import schema
from reki_ray.config import ExtractConfig, RekiConfig
from reki_ray.config import ScriptedEngine as ScriptedConfig
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.extraction.engines.scripted import ScriptedActor, ScriptedBatchEngine
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import ANSWER_SCHEMA, BODY, PROMPT_HASH, SUBJECT_ID, SUBJECT_KIND

if TYPE_CHECKING:
    from ray.data import Dataset

Death = Literal["none", "sigkill", "os_exit", "clean_exit"]

USERS, ITEMS = 60, 60
SUBJECTS = USERS + ITEMS
UNIT_ROWS = 8


@dataclass(frozen=True)
class Fault:
    """How an engine's actors behave.

    Attributes:
        folder: Gets the notes of all calls, and the mark of a death.
        death: How one actor dies.
        after: Calls of an actor after which it dies; the first to reach it, and no other.
        seconds: Time that a call takes.
        every_actor: Every actor dies, again and again.
        poison: Actors die of prompts with this text, each time.
        no_start: Actors fail in their constructor.
        concurrent: Actors hold as many units as `extract.prompts_in_flight` allows, as vLLM's.
        slow: A prompt with this text takes a hundred times as long.
        gpus: GPUs that an actor asks for.
        start_seconds: Time that a constructor takes.
    """

    folder: str
    death: Death = "none"
    after: int = 20
    seconds: float = 0.0
    every_actor: bool = False
    poison: str = ""
    no_start: bool = False
    concurrent: bool = False
    slow: str = ""
    gpus: int = 0
    start_seconds: float = 0.0


class FaultyEngine(ScriptedBatchEngine):
    """The scripted engine with a fault."""

    def __init__(
        self, config: ScriptedConfig, extract: ExtractConfig, template: PromptTemplate, fault: Fault
    ) -> None:
        super().__init__(config, extract, template)
        self._fault = fault
        self.demand = {"CPU": 1.0, "GPU": float(fault.gpus)}

    def answer(self, questions: Dataset) -> Dataset:
        return questions.map_batches(
            FaultyActor,
            fn_constructor_args=(self._config, self._template, self._fault),
            **self.actors(self.units_in_flight if self._fault.concurrent else 1),
        )


class FaultyActor(ScriptedActor):
    """Asks row by row, and notes each call before it answers."""

    def __init__(self, config: ScriptedConfig, template: PromptTemplate, fault: Fault) -> None:
        super().__init__(config, template)
        if fault.no_start:
            raise RuntimeError("the model does not fit")
        time.sleep(fault.start_seconds)
        self._fault = fault
        self._calls = 0

    def __call__(self, questions: pa.Table) -> pa.Table:
        answers = []
        for row in range(questions.num_rows):
            self._note(questions[PROMPT_HASH][row].as_py())
            slow = self._fault.slow and self._fault.slow in questions[BODY][row].as_py()
            time.sleep(self._fault.seconds * (100 if slow else 1))
            if self._fault.poison and self._fault.poison in questions[BODY][row].as_py():
                os._exit(1)
            answers.append(super().__call__(questions.slice(row, 1)))
            self._calls += 1
            self._perhaps_die()
        return pa.concat_tables(answers) if answers else ANSWER_SCHEMA.empty_table()

    def _note(self, address: str) -> None:
        # One short line an appending write: lines of several processes don't mix.
        with (Path(self._fault.folder) / "calls").open("a", encoding="utf-8") as file:
            file.write(f"{address} {time.time()} {os.getpid()}\n")

    def _perhaps_die(self) -> None:
        fault = self._fault
        if fault.death == "none" or self._calls < fault.after:
            return
        mark = Path(fault.folder) / "died"
        if not fault.every_actor:
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                return
        if fault.death == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.death == "os_exit":
            os._exit(1)
        else:
            ray.actor.exit_actor()


def fill(workspace: Workspace) -> None:
    """Users and items to ask about, one prompt each."""
    synthetic.fill(workspace, USERS, ITEMS, events=4)


def config(root: str, **extract: Any) -> RekiConfig:
    return RekiConfig.model_validate(
        {
            "name": "chaos",
            "workspace": root,
            "data": {"source": {"kind": "movielens_100k"}},
            "extract": {
                "engine": {"kind": "scripted"},
                "mode": "individual",
                "unit_rows": UNIT_ROWS,
                **extract,
            },
            "train": {"arms": ["fair_base", "reki_i"]},
            "ray": {"num_cpus": 2, "object_store_mib": 256},
        }
    )


def calls(folder: Path) -> dict[str, list[float]]:
    """Times of the calls of each prompt."""
    found: dict[str, list[float]] = {}
    for line in (folder / "calls").read_text(encoding="utf-8").splitlines():
        address, at, _ = line.split()
        found.setdefault(address, []).append(float(at))
    return found


def callers(folder: Path) -> dict[int, list[float]]:
    """Times of the calls of each engine process."""
    found: dict[int, list[float]] = {}
    for line in (folder / "calls").read_text(encoding="utf-8").splitlines():
        _, at, pid = line.split()
        found.setdefault(int(pid), []).append(float(at))
    return found


def repeated(folder: Path) -> int:
    """Number of calls beyond the first of each prompt."""
    return sum(len(times) - 1 for times in calls(folder).values())


def kept(workspace: Workspace) -> dict[str, float]:
    """When the answer of each prompt was kept: the age of its unit's file."""
    found: dict[str, float] = {}
    for part in workspace.parts(LEDGER):
        at = Path(part).stat().st_mtime
        found |= dict.fromkeys(pq.read_table(part)[PROMPT_HASH].to_pylist(), at)
    return found


def require_sound(workspace: Workspace, result: StageResult, folder: Path) -> None:
    """Every subject exactly once, no finished prompt asked again, counts that add up."""
    settled: list[tuple[str, str]] = []
    for table in (schema.KNOWLEDGE, schema.DEAD_LETTERS):
        if workspace.has_table(table):
            rows = workspace.read_table(table, columns=[SUBJECT_KIND, SUBJECT_ID])
            columns = (rows[name].to_pylist() for name in (SUBJECT_KIND, SUBJECT_ID))
            settled += zip(*columns, strict=True)
    expected = [("user", f"u{row:08d}") for row in range(USERS)]
    expected += [("item", f"i{row:08d}") for row in range(ITEMS)]
    assert sorted(settled) == sorted(expected)
    assert result.rows_in == result.rows_out + result.dead == SUBJECTS
    require_no_repetition(calls(folder), kept(workspace))


def require_no_repetition(asked: Mapping[str, list[float]], kept_at: Mapping[str, float]) -> None:
    """No call of a prompt after its answer was kept."""
    late = {
        address: times
        for address, times in asked.items()
        if address in kept_at and max(times) > kept_at[address]
    }
    assert not late
    assert set(asked) >= set(kept_at)
