"""The guard of a run's budget: one actor that every replica asks before it spends."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

LEASE_SECONDS = 60.0
"""A replica that was not heard of for so long is gone, and what it holds counts as spent."""


@dataclass(frozen=True)
class BudgetRefusal:
    """Nothing can be reserved: the budget would not last even if all that is held came back.

    Attributes:
        spent: Money spent so far.
    """

    spent: float


@dataclass(frozen=True)
class _Hold:
    owner: str
    amount: float


class SpendingGuard:
    """Lets replicas spend together no more than a budget.

    A replica reserves the most that a work unit may cost, asks, and settles what it did cost.
    What is reserved and what is spent never exceed the budget together; a reservation that
    does not fit now waits for others to settle, and is refused when that cannot help. A replica
    that dies holds money that may have been spent: it is counted as spent.

    Args:
        budget: Most that may be spent, money.
        lease_seconds: Silence after which a replica counts as dead.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        budget: float,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._lease = lease_seconds
        self._clock = clock
        self._spent = 0.0
        self._holds: dict[int, _Hold] = {}
        self._forfeited: dict[int, float] = {}
        self._heard: dict[str, float] = {}
        self._tickets = itertools.count()
        self._changed = asyncio.Condition()

    async def reserve(self, owner: str, amount: float) -> int | BudgetRefusal:
        """Set money aside; waits while others may still give some back.

        Args:
            owner: The replica.
            amount: The most that its work unit may cost.

        Returns:
            Ticket under which to settle, or why there is none.
        """
        async with self._changed:
            while True:
                self._hear(owner)
                if self._fits(amount):
                    ticket = next(self._tickets)
                    self._holds[ticket] = _Hold(owner, amount)
                    return ticket
                if self._spent + amount > self._budget:
                    return BudgetRefusal(self._spent)
                await self._change()

    async def extend(self, ticket: int, amount: float) -> bool:
        """Set more aside under a ticket, for a call that is repeated; never waits.

        Args:
            ticket: From `reserve`.
            amount: The most that the repetition may cost.
        """
        async with self._changed:
            hold = self._holds.get(ticket)
            if hold is None or not self._fits(amount):
                return False
            self._holds[ticket] = _Hold(hold.owner, hold.amount + amount)
            return True

    async def settle(self, ticket: int, spent: float) -> None:
        """Replace a reservation by what was spent.

        Args:
            ticket: From `reserve`.
            spent: What the work unit did cost.
        """
        async with self._changed:
            self._holds.pop(ticket, None)
            # A replica that was only slow has been charged in full already.
            self._spent += spent - self._forfeited.pop(ticket, 0.0)
            self._changed.notify_all()

    async def alive(self, owner: str) -> None:
        """A sign of life of a replica."""
        self._hear(owner)

    async def spent(self) -> float:
        """Money spent so far."""
        return self._spent

    def _fits(self, amount: float) -> bool:
        held = sum(hold.amount for hold in self._holds.values())
        return self._spent + held + amount <= self._budget

    def _hear(self, owner: str) -> None:
        now = self._clock()
        self._heard[owner] = now
        for ticket, hold in list(self._holds.items()):
            if now - self._heard[hold.owner] > self._lease:
                self._forfeited[ticket] = hold.amount
                self._spent += hold.amount
                del self._holds[ticket]

    async def _change(self) -> None:
        # A dead holder changes nothing by itself, so nobody waits longer than a lease.
        try:
            await asyncio.wait_for(self._changed.wait(), self._lease)
        except TimeoutError:
            return
