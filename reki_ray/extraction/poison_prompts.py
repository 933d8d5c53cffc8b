"""Bisection for prompts that kill the engine.

A broken engine and a prompt that kills every engine look alike: nothing finishes. The number of
prompts sent is halved after each such death; a prompt on which the engine dies alone, twice, is a
suspect, and becomes a dead letter once the engine has answered another prompt. If the engine
answers nothing in between, the engine is broken and no prompt is blamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DEATHS_ALONE: Final = 2
"""The first may have been the node's or the network's."""


@dataclass
class PoisonBisector:
    """Decides how many pending prompts the next pipeline gets; suspects are skipped.

    Args:
        unit_rows: Prompts per work unit: the first share after a death.
        restarts: Failed starts in a row, or suspects, that are tolerated.

    Attributes:
        suspects: Leading pending prompts on which the engine died alone, none answered since.
        share: Prompts of the next pipeline; None for all.
        reason: Error of the last such death.
    """

    unit_rows: int
    restarts: int
    suspects: int = 0
    share: int | None = None
    reason: str = ""
    _failed_starts: int = 0
    _alone: int = 0

    def answered(self) -> int:
        """Widen the share after progress; returns how many leading prompts kill the engine."""
        poisonous, self.suspects = self.suspects, 0
        self._failed_starts = self._alone = 0
        if self.share is not None:
            self.share = 2 * self.share if 2 * self.share <= self.unit_rows else None
        return poisonous

    def died(self, left: int, reason: str, *, started: bool) -> bool:
        """Narrow the share after a death without progress; returns whether to go on.

        Args:
            left: Pending prompts, suspects not counted.
            reason: Error that ended the pipeline.
            started: Whether the engine started; if not, no prompt is to blame.
        """
        if not started:
            self._failed_starts += 1
            return self._failed_starts <= self.restarts
        self.reason = reason
        sent = left if self.share is None else min(self.share, left)
        if sent > 1:
            self.share = min(self.unit_rows, sent // 2)
            return True
        self.share = 1
        self._alone += 1
        if self._alone == _DEATHS_ALONE:
            self._alone = 0
            self.suspects += 1
        return self.suspects <= self.restarts
