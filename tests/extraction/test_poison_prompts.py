"""Finding the prompts that kill an engine, against an engine that is only a set of such prompts."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reki_ray.extraction.poison_prompts import PoisonBisector
from reki_ray.extraction.work_units import PendingUnits, WorkUnit

RESTARTS = 3


def ask(prompts: int, poison: Collection[int], unit_rows: int) -> tuple[list[int], list[int], int]:
    """Play asking: a pipeline answers units in order until one holds poison.

    Returns:
        Answered prompts, buried prompts, pipelines.
    """
    bisector = PoisonBisector(unit_rows, RESTARTS)
    left, answered, buried, pipelines = list(range(prompts)), [], [], 0
    while left:
        pipelines += 1
        asked = left[bisector.suspects :][: bisector.share]
        done: list[int] = []
        for start in range(0, len(asked), unit_rows):
            unit = asked[start : start + unit_rows]
            if set(unit) & set(poison):
                break
            done += unit
        left = [prompt for prompt in left if prompt not in done]
        answered += done
        if done:
            count = bisector.answered()
        else:
            others = len(left) - bisector.suspects
            assert bisector.died(others, "it died", started=True)
            count = bisector.suspects if bisector.suspects == len(left) else 0
        buried += left[:count]
        left = left[count:]
    return answered, buried, pipelines


@given(st.integers(2, 200), st.sets(st.integers(0, 199), max_size=RESTARTS), st.integers(1, 64))
def test_exactly_the_poisonous_prompts_are_buried(
    prompts: int, poison: set[int], unit_rows: int
) -> None:
    there = {number for number in poison if number < prompts}
    answered, buried, pipelines = ask(prompts, there, unit_rows)
    assert sorted(buried) == sorted(there)
    assert sorted(answered + buried) == list(range(prompts))
    assert pipelines <= 1 + len(there) * 8 * unit_rows.bit_length()


def test_an_engine_that_always_dies_is_given_up() -> None:
    bisector = PoisonBisector(unit_rows=64, restarts=1)
    deaths = 1
    while bisector.died(1000 - bisector.suspects, "it died", started=True):
        deaths += 1
    assert bisector.suspects == 2
    assert deaths == 1 + 6 + 2 * 2  # everything, 64 to 2, two prompts alone twice


def test_failed_starts_blame_no_prompt() -> None:
    bisector = PoisonBisector(unit_rows=64, restarts=2)
    assert [bisector.died(9, "no memory", started=False) for _ in range(3)] == [True, True, False]
    assert (bisector.suspects, bisector.share) == (0, None)


@pytest.mark.parametrize(
    ("skip", "most", "expected"),
    [
        (0, None, [("a", 0, 3), ("a", 3, 5), ("c", 0, 3), ("c", 3, 4)]),
        (4, None, [("a", 4, 5), ("c", 0, 3), ("c", 3, 4)]),
        (1, 2, [("a", 1, 3)]),
        (3, 4, [("a", 3, 5), ("c", 0, 2)]),
        (9, 5, []),
    ],
)
def test_units_of_a_part_of_what_is_pending(
    skip: int, most: int | None, expected: list[tuple[str, int, int]]
) -> None:
    pending = PendingUnits({"a": 5, "b": 0, "c": 4}, hits=0, prompts=9)
    assert pending.units(3, skip=skip, most=most) == [WorkUnit(*unit) for unit in expected]
