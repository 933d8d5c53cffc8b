"""Budget of one work unit, reserved before its first call."""

from __future__ import annotations

from typing import Any, Protocol

import ray
from typing_extensions import override

from reki_ray.errors import EngineError


class Reservation(Protocol):
    """Money of one work unit."""

    async def reserve(self, amount: float) -> bool:
        """Reserve money for one more call; False if the budget is exhausted."""

    def charge(self, most: float, cost: float) -> None:
        """Pay a call: `cost` out of the reserved `most`."""

    def release(self, most: float) -> None:
        """Give back the money of a call that cost nothing."""


class UnlimitedReservation(Reservation):
    """Reservation without a budget."""

    @override
    async def reserve(self, amount: float) -> bool:
        return True

    @override
    def charge(self, most: float, cost: float) -> None:
        pass

    @override
    def release(self, most: float) -> None:
        pass


class BudgetReservation(Reservation):
    """Money that a `SpendingGuard` actor has reserved for a work unit under a ticket."""

    def __init__(self, guard: Any, ticket: int) -> None:
        self._guard = guard
        self._ticket = ticket
        self._free = 0.0
        self._spent = 0.0

    @override
    async def reserve(self, amount: float) -> bool:
        # First from what cheaper calls have left.
        if self._free >= amount:
            self._free -= amount
            return True
        return bool(await guarded(self._guard.extend.remote(self._ticket, amount)))

    @override
    def charge(self, most: float, cost: float) -> None:
        self._spent += cost
        self._free += most - cost

    @override
    def release(self, most: float) -> None:
        self._free += most

    async def settle(self) -> None:
        """Report the spent money to the guard."""
        await guarded(self._guard.settle.remote(self._ticket, self._spent))


async def guarded(call: Any) -> Any:
    """Await an answer of the guard.

    Raises:
        EngineError: The guard is gone; nothing is spent without it.
    """
    try:
        return await call
    except ray.exceptions.RayError as error:
        raise EngineError(
            "the guard of the budget is gone",
            where="extract.engine.budget",
            todo="Run again: only the missing prompts are sent, with the whole budget.",
        ) from error
