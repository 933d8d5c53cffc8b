"""Budget of one work unit, reserved before its first call."""

from __future__ import annotations

from typing import Any

import ray

from reki_ray.errors import EngineError


class Reservation:
    """Money that a `SpendingGuard` actor has reserved for a work unit; unlimited without one.

    Args:
        guard: Handle of the actor; None without a budget.
        ticket: Of the reservation at the guard.
    """

    def __init__(self, guard: Any = None, ticket: int = 0) -> None:
        self._guard = guard
        self._ticket = ticket
        self._free = 0.0
        self._spent = 0.0

    async def reserve(self, amount: float) -> bool:
        """Reserve money for one more call; False if the budget is exhausted."""
        # First from what cheaper calls have left.
        if self._free >= amount:
            self._free -= amount
            return True
        if self._guard is None:
            return True
        return bool(await guarded(self._guard.extend.remote(self._ticket, amount)))

    def charge(self, most: float, cost: float) -> None:
        """Pay a call: `cost` out of the reserved `most`."""
        self._spent += cost
        self._free += most - cost

    def release(self, most: float) -> None:
        """Give back the money of a call that cost nothing."""
        self._free += most

    async def settle(self) -> None:
        """Report the spent money to the guard."""
        if self._guard is not None:
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
