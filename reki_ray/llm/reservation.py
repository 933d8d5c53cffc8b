"""What one work unit may spend: its share of the budget, reserved before the first call."""

from __future__ import annotations

from typing import Any, Protocol

import ray

from reki_ray.errors import EngineError


class Reservation(Protocol):
    """Money of one work unit."""

    async def reserve(self, amount: float) -> bool:
        """Set money aside for one more call; False where there is none."""

    def charge(self, most: float, cost: float) -> None:
        """Pay a call.

        Args:
            most: What was set aside for it.
            cost: What it did cost.
        """

    def release(self, most: float) -> None:
        """Give back what was set aside for a call that cost nothing."""


class UnlimitedReservation:
    """The purse without a budget."""

    async def reserve(self, amount: float) -> bool:
        """See `Reservation.take`."""
        del amount
        return True

    def charge(self, most: float, cost: float) -> None:
        """See `Reservation.charge`."""

    def release(self, most: float) -> None:
        """See `Reservation.release`."""


class BudgetReservation:
    """The purse of a work unit for which the guard has reserved money.

    Args:
        guard: Handle of a `SpendingGuard` actor.
        ticket: Of the reservation.
    """

    def __init__(self, guard: Any, ticket: int) -> None:
        self._guard = guard
        self._ticket = ticket
        self._free = 0.0
        self._spent = 0.0

    async def reserve(self, amount: float) -> bool:
        """See `Reservation.take`: from what cheaper calls left, or else from the budget."""
        if self._free >= amount:
            self._free -= amount
            return True
        return bool(await guarded(self._guard.extend.remote(self._ticket, amount)))

    def charge(self, most: float, cost: float) -> None:
        """See `Reservation.charge`."""
        self._spent += cost
        self._free += most - cost

    def release(self, most: float) -> None:
        """See `Reservation.release`."""
        self._free += most

    async def settle(self) -> None:
        """Tell the guard what was spent."""
        await guarded(self._guard.settle.remote(self._ticket, self._spent))


async def guarded(call: Any) -> Any:
    """The answer of the guard.

    Raises:
        EngineError: The guard is gone; nothing is spent without it.
    """
    try:
        return await call
    except ray.exceptions.RayError as error:
        raise EngineError(
            "the guard of the budget is gone",
            where="extract.engine.budget",
            todo="Run again: only what is missing is asked, with the whole budget.",
        ) from error
