"""The guard of a budget: what is reserved and spent never exceeds it, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from actors.spending_guard import BudgetRefusal, SpendingGuard

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ticket(guard: SpendingGuard, owner: str, amount: float) -> int:
    found = await guard.reserve(owner, amount)
    assert isinstance(found, int)
    return found


async def test_reservations_are_settled_at_their_cost() -> None:
    guard = SpendingGuard(10)
    first = await ticket(guard, "a", 6)
    await guard.settle(first, 2)
    second = await ticket(guard, "a", 8)
    assert await guard.spent() == 2
    assert not await guard.extend(second, 0.5)
    await guard.settle(second, 1)
    assert await guard.spent() == 3


async def test_what_does_not_fit_now_waits_for_others() -> None:
    guard = SpendingGuard(10)
    first = await ticket(guard, "a", 6)
    waiting = asyncio.create_task(guard.reserve("b", 6))
    await asyncio.sleep(0)
    assert not waiting.done()
    await guard.settle(first, 1)
    assert isinstance(await waiting, int)


async def test_what_can_never_fit_is_refused_also_while_waiting() -> None:
    guard = SpendingGuard(10)
    assert await guard.reserve("a", 11) == BudgetRefusal(0)
    first = await ticket(guard, "a", 6)
    waiting = asyncio.create_task(guard.reserve("b", 6))
    await asyncio.sleep(0)
    await guard.settle(first, 5)
    assert await waiting == BudgetRefusal(5)


async def test_many_at_a_time_stay_within_the_budget() -> None:
    guard = SpendingGuard(100)
    held = spent = highest = 0.0

    async def work(owner: str) -> None:
        nonlocal held, spent, highest
        while isinstance(found := await guard.reserve(owner, 4), int):
            held += 4
            highest = max(highest, held + spent)
            await asyncio.sleep(0)
            held, spent = held - 4, spent + 3
            await guard.settle(found, 3)

    await asyncio.gather(*(work(f"{number}") for number in range(20)))
    assert highest <= 100
    assert spent == await guard.spent() == 99


async def test_a_dead_replica_is_charged_in_full_and_blocks_nobody() -> None:
    now = [0.0]
    guard = SpendingGuard(10, lease_seconds=60, clock=lambda: now[0])
    lost = await ticket(guard, "dead", 6)
    now[0] = 61
    assert await guard.reserve("alive", 5) == BudgetRefusal(6)
    assert isinstance(await guard.reserve("alive", 4), int)
    await guard.settle(lost, 2)  # it was only slow
    assert await guard.spent() == 2


async def test_who_waits_for_a_dead_replica_goes_on_after_its_lease() -> None:
    guard = SpendingGuard(10, lease_seconds=0.05)
    await ticket(guard, "dead", 6)
    assert await guard.reserve("alive", 5) == BudgetRefusal(6)


async def test_a_replica_that_shows_signs_of_life_keeps_its_money() -> None:
    now = [0.0]
    guard = SpendingGuard(10, lease_seconds=60, clock=lambda: now[0])
    first = await ticket(guard, "slow", 6)
    for now[0] in (50, 100, 150):
        await guard.alive("slow")
    now[0] = 200
    await guard.alive("other")
    assert await guard.spent() == 0
    await guard.settle(first, 6)
    assert await guard.spent() == 6
