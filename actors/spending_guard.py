"""Guard of a run's budget: one actor in which every replica reserves money before it spends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

LEASE_SECONDS = 60.0
"""After so long without a heartbeat a replica is dead, and its reservations count as spent."""


@dataclass(frozen=True)
class BudgetRefusal:
    """The budget would not suffice even if all reservations were released."""

    spent: float


class SpendingGuard:
    """Keeps all replicas together within a budget.

    A replica reserves the maximal cost of a work unit, sends its prompts, and settles the real
    cost. Reserved and spent money together never exceed the budget; a reservation that does not
    fit waits for others to settle, and is refused if that cannot help. The reservations of a dead
    replica may have been spent, and count as spent.
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
        self._holds: dict[int, tuple[str, float]] = {}  # owner and amount by ticket
        self._forfeited: dict[int, float] = {}
        self._heard: dict[str, float] = {}
        self._tickets = itertools.count()
        self._changed = asyncio.Condition()

    async def reserve(self, owner: str, amount: float) -> int | BudgetRefusal:
        """Reserve money and return a ticket; waits while others may still give some back."""
        async with self._changed:
            while True:
                self._hear(owner)
                if self._fits(amount):
                    ticket = next(self._tickets)
                    self._holds[ticket] = (owner, amount)
                    return ticket
                if self._spent + amount > self._budget:
                    return BudgetRefusal(self._spent)
                await self._change()

    async def extend(self, ticket: int, amount: float) -> bool:
        """Reserve more under a ticket, for a retry; never waits."""
        async with self._changed:
            owner, held = self._holds.get(ticket, ("", 0.0))
            if not owner or not self._fits(amount):
                return False
            self._holds[ticket] = (owner, held + amount)
            return True

    async def settle(self, ticket: int, spent: float) -> None:
        """Replace a reservation by the real cost."""
        async with self._changed:
            self._holds.pop(ticket, None)
            # A replica that was only slow has already been charged in full.
            self._spent += spent - self._forfeited.pop(ticket, 0.0)
            self._changed.notify_all()

    async def alive(self, owner: str) -> None:
        """Heartbeat of a replica."""
        self._hear(owner)

    async def spent(self) -> float:
        """Money spent so far."""
        return self._spent

    def _fits(self, amount: float) -> bool:
        held = sum(amount for _, amount in self._holds.values())
        return self._spent + held + amount <= self._budget

    def _hear(self, owner: str) -> None:
        now = self._clock()
        self._heard[owner] = now
        for ticket, (holder, amount) in list(self._holds.items()):
            if now - self._heard[holder] > self._lease:
                self._forfeited[ticket] = amount
                self._spent += amount
                del self._holds[ticket]

    async def _change(self) -> None:
        # A dead owner does not notify, so no wait is longer than a lease.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), self._lease)
