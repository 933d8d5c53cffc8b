"""`extract_knowledge`: knowledge for a table of items or users, without a configured run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from reki_ray.errors import ConfigError, EngineError
from reki_ray.stages.extract import extract_knowledge
from reki_ray.stages.extract_runner import ExtractRunner

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

FILMS = pa.table(
    {
        "id": ["1", "2", "3"],
        "title": ["Heat (1995)", "Toy Story (1995)", "Alien (1979)"],
        "attributes": [{"genre": ["Action"]}, {"genre": ["Comedy", "Family"]}, None],
    }
)
SCRIPTED = {"kind": "scripted"}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of prompts that were sent, call by call."""
    numbers: list[int] = []
    run = ExtractRunner.run

    def counting(self: ExtractRunner, pending: Any) -> None:
        numbers.append(pending.rows)
        run(self, pending)

    monkeypatch.setattr(ExtractRunner, "run", counting)
    return numbers


def test_items_get_knowledge_and_a_second_call_sends_only_new_prompts(
    tmp_path: Path, sent: list[int]
) -> None:
    first = extract_knowledge(FILMS, engine=SCRIPTED, folder=tmp_path)
    assert sorted(first["id"].to_pylist()) == ["1", "2", "3"]
    assert set(first["factor"].to_pylist()) == {"*"}
    assert all("genre: " in text for text in first["text"].to_pylist())
    assert extract_knowledge(FILMS, engine=SCRIPTED, folder=tmp_path).sort_by("id") == (
        first.sort_by("id")
    )
    more = pa.concat_tables(
        [FILMS, pa.table({"id": ["4"], "title": ["Dune"], "attributes": [None]}, FILMS.schema)]
    )
    assert extract_knowledge(more, engine=SCRIPTED, folder=tmp_path).num_rows == 4
    assert sent == [3, 1]


def test_users_are_described_by_attributes_and_history(tmp_path: Path) -> None:
    users = pa.table(
        {"id": ["u1"], "attributes": [{"age": "25-34"}], "history": [["Heat", "Ronin"]]}
    )
    knowledge = extract_knowledge(
        users,
        kind="user",
        engine=SCRIPTED,
        prompts={"form": "json", "factors": ["genre", "mood and tone"]},
        folder=tmp_path,
    )
    assert set(knowledge["id"].to_pylist()) == {"u1"}
    assert set(knowledge["factor"].to_pylist()) == {"genre", "mood and tone"}


def test_tables_without_title_or_with_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="columns are missing: title"):
        extract_knowledge(pa.table({"id": ["1"]}), engine=SCRIPTED, folder=tmp_path)
    twice = pa.table({"id": ["1", "1"], "title": ["a", "b"]})
    with pytest.raises(ConfigError, match="not unique"):
        extract_knowledge(twice, engine=SCRIPTED, folder=tmp_path)
    with pytest.raises(ConfigError, match="nonsense"):
        extract_knowledge(FILMS, engine={**SCRIPTED, "nonsense": 1}, folder=tmp_path)


def test_too_many_failures_raise(tmp_path: Path) -> None:
    failing = {**SCRIPTED, "fail_containing": "Heat"}
    with pytest.raises(EngineError, match="1 of 3 prompts have no answer"):
        extract_knowledge(FILMS, engine=failing, folder=tmp_path)
    tolerant = {"engine": failing, "max_dead_share": 0.5}
    knowledge = extract_knowledge(FILMS, engine=tolerant, folder=tmp_path)
    assert sorted(knowledge["id"].to_pylist()) == ["2", "3"]
