"""The ledger: what an address covers, and that no answer is lost by kills, races or merging."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray.config import ExtractConfig, PromptsConfig, SamplingConfig, VllmEngine
from reki_ray.core import content_store
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError, EngineError
from reki_ray.extraction.answer_cache import (
    FAILURES,
    LEDGER,
    PASS,
    AnswerCache,
    PromptKeys,
    digests_of,
)
from reki_ray.prompts.renderer import Renderer
from reki_ray.prompts.scenario import load_scenario
from reki_ray.schema import (
    CACHED_TOKENS,
    CREATED_AT,
    ENGINE,
    FINISH_REASON,
    GENERATED_TOKENS,
    MODEL,
    PROMPT,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REASON,
    REVISION,
    TEXTS,
)

GREEDY = SamplingConfig()


def address(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def answers(*names: str, text: str = "known") -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                PROMPT_HASH: address(name),
                TEXTS: [("*", text)],
                MODEL: "m",
                REVISION: "1",
                ENGINE: "test",
                PROMPT_TOKENS: 3,
                CACHED_TOKENS: 1,
                GENERATED_TOKENS: 2,
                FINISH_REASON: None,
                CREATED_AT: 0,
            }
            for name in names
        ],
        schema=LEDGER.schema,
    )


def failures(*names: str, asking: str = "a", at: int = 0) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                PROMPT_HASH: address(name),
                REASON: "broken",
                PROMPT: None,
                PASS: asking,
                CREATED_AT: at,
            }
            for name in names
        ],
        schema=FAILURES.schema,
    )


NOTHING = failures()


def known(ledger: AnswerCache, *names: str) -> list[bool]:
    digests = digests_of(pa.array([address(name) for name in names]))
    return list(ledger.index().find(digests) >= 0)


def test_the_address_covers_what_determines_the_answer() -> None:
    def of(
        body: str = "b", model: str = "m", revision: str = "1",
        sampling: SamplingConfig = GREEDY, **prompts: object,
    ) -> str:  # fmt: skip
        limits = PromptsConfig.model_validate(prompts)
        template = Renderer(load_scenario("movies"), limits).template
        extract = ExtractConfig(
            engine=VllmEngine(model=model, revision=revision), sampling=sampling
        )
        return PromptKeys(template, extract).of("item", body)

    base = of()
    assert base == of(sampling=SamplingConfig())
    others = {
        of(body="c"),
        of(model="n"),
        of(revision="2"),
        of(sampling=SamplingConfig(max_tokens=7)),
        of(few_shot=True),
        of(factors=("genre",)),
        of(form="json"),
    }
    assert len(others - {base}) == 7


def test_subjects_of_different_kinds_have_different_addresses() -> None:
    template = Renderer(load_scenario("movies"), PromptsConfig()).template
    prompt_keys = PromptKeys(template, ExtractConfig())
    assert prompt_keys.of("item", "b") != prompt_keys.of("user", "b")


def test_an_empty_ledger_knows_nothing(stored: Workspace) -> None:
    assert known(AnswerCache(stored), "a") == [False]
    assert AnswerCache(stored).failures().num_rows == 0


def test_the_index_finds_each_answer_where_it_lies(stored: Workspace) -> None:
    ledger = AnswerCache(stored)
    for unit in (("a", "b"), ("c",), ("d", "e", "f")):
        ledger.append(answers(*unit, text=unit[0]), NOTHING)
    index = ledger.index()
    for name, text in (("b", "a"), ("c", "c"), ("f", "d")):
        (entry,) = index.find(digests_of(pa.array([address(name)])))
        row = ledger.read(index.files[index.file[entry]]).slice(index.row[entry], 1)
        assert row[PROMPT_HASH][0].as_py() == address(name)
        assert row[TEXTS][0].as_py() == [("*", text)]
    assert known(ledger, "a", "x") == [True, False]


def test_a_unit_that_is_written_twice_is_one_file(stored: Workspace) -> None:
    ledger = AnswerCache(stored)
    ledger.append(answers("a", "b"), NOTHING)
    ledger.append(answers("b", "a"), NOTHING)
    assert len(stored.parts(LEDGER)) == 1


def test_failures_of_two_askings_are_both_kept(stored: Workspace) -> None:
    ledger = AnswerCache(stored)
    ledger.append(answers(), failures("a", asking="first", at=1))
    ledger.append(answers(), failures("a", asking="second", at=2))
    assert ledger.failures()[PASS].to_pylist() == ["first", "second"]
    assert ledger.failures("first").num_rows == 1


def test_half_written_files_are_never_read(workspace: Workspace) -> None:
    ledger = AnswerCache(workspace)
    ledger.append(answers("a"), failures("b"))
    for folder in ("ledger", "failures"):
        Path(workspace.path("extract", folder, ".unit-x.parquet.1.tmp")).write_bytes(b"PAR1 half")
    assert known(ledger, "a") == [True]
    assert ledger.failures().num_rows == 1


def test_merging_keeps_every_answer_in_few_files(
    stored: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_store, "_COMPACT_ROWS", 50)
    ledger = AnswerCache(stored)
    for unit in range(40):
        ledger.append(answers(*(f"{unit}-{i}" for i in range(3))), failures(f"bad-{unit}"))
    before = ledger.index().digests
    assert ledger.compact() == 80
    assert len(stored.parts(LEDGER)) == 3
    np.testing.assert_array_equal(np.sort(ledger.index().digests), np.sort(before))
    assert ledger.failures().num_rows == 40
    assert ledger.compact() == 0


def test_merging_that_was_killed_before_the_old_files_went_loses_nothing(
    stored: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = AnswerCache(stored)
    for unit in range(40):
        ledger.append(answers(f"{unit}"), NOTHING)

    def killed(path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stored.filesystem, "rm", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.compact()
    assert len(stored.parts(LEDGER)) == 41
    assert known(ledger, *map(str, range(40))) == [True] * 40
    ledger.compact()
    assert len(np.unique(ledger.index().digests)) == 40


def _write_units(root: str, writer: int) -> None:
    ledger = AnswerCache(Workspace(root))
    for unit in range(20):
        # Half of the units are the other writers' as well.
        name = f"{unit}" if unit % 2 else f"{writer}-{unit}"
        ledger.append(answers(name), NOTHING)


def test_several_writers_and_a_merger_at_a_time_lose_nothing(workspace: Workspace) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_units, args=(workspace.root, w)) for w in range(4)]
    for writer in writers:
        writer.start()
    ledger = AnswerCache(workspace)
    while any(writer.is_alive() for writer in writers):
        ledger.compact()
    assert all(writer.exitcode == 0 for writer in writers)
    ledger.compact()
    expected = {f"{unit}" for unit in range(1, 20, 2)}
    expected |= {f"{writer}-{unit}" for writer in range(4) for unit in range(0, 20, 2)}
    assert known(ledger, *sorted(expected)) == [True] * len(expected)


@pytest.mark.parametrize("damage", ["footer", "page", "empty"])
def test_a_damaged_file_is_named_with_what_to_do(workspace: Workspace, damage: str) -> None:
    ledger = AnswerCache(workspace)
    ledger.append(answers(*map(str, range(100))), NOTHING)
    (part,) = workspace.parts(LEDGER)
    content = bytearray(Path(part).read_bytes())
    if damage == "footer":
        content[-8:] = b"\0" * 8
    elif damage == "page":
        start = pq.ParquetFile(part).metadata.row_group(0).column(0).data_page_offset
        content[start : start + 64] = os.urandom(64)
    else:
        content = bytearray()
    Path(part).write_bytes(bytes(content))
    with pytest.raises(DataError, match="answer cache is damaged") as caught:
        ledger.index()
    assert caught.value.where == part
    assert "Delete it" in caught.value.todo


def test_a_disk_that_is_full_is_told_and_leaves_no_half_file(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = AnswerCache(workspace)
    ledger.append(answers("a"), NOTHING)

    def full(rows: pa.Table, sink: BinaryIO, **_: object) -> None:
        sink.write(b"PAR1")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.raises(EngineError, match="No space left"):
            ledger.append(answers("b"), NOTHING)
    assert len(list(Path(workspace.path("extract/ledger")).iterdir())) == 1
    assert known(ledger, "a", "b") == [True, False]
