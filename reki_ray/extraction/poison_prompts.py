"""Which prompt kills the engine: asked in ever smaller shares until it stands alone.

An engine that dies whatever it is asked and a prompt that kills every engine look alike from
outside: nothing is finished. Here the share that is asked is halved after each such death; a
prompt that dies alone, twice, is a suspect, and becomes a dead letter as soon as the engine has
answered another one. An engine that answers nothing in between is what is broken, and no prompt is
blamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DEATHS_ALONE: Final = 2
"""The first may have been the node's or the network's."""


@dataclass
class PoisonBisector:
    """Decides what the next pipeline asks: pending prompts in order, suspects skipped.

    Args:
        unit_rows: Prompts a work unit: the first share after a death.
        restarts: Deaths in a row that are forgiven: failed starts, or suspects.

    Attributes:
        suspects: Leading pending prompts that died alone, none answered since.
        share: Prompts that the next pipeline asks; None asks all.
        reason: What the last of them died of.
    """

    unit_rows: int
    restarts: int
    suspects: int = 0
    share: int | None = None
    reason: str = ""
    _failed_starts: int = 0
    _alone: int = 0

    def answered(self) -> int:
        """Something was finished: widen the share.

        Returns:
            Leading pending prompts that are now known to kill the engine.
        """
        found, self.suspects = self.suspects, 0
        self._failed_starts = self._alone = 0
        if self.share is not None:
            self.share = 2 * self.share if 2 * self.share <= self.unit_rows else None
        return found

    def died(self, left: int, reason: str, *, started: bool) -> bool:
        """Nothing was finished: narrow the share.

        Args:
            left: Pending prompts, suspects not counted.
            reason: What ended the pipeline.
            started: Whether the engine came up at all: otherwise no prompt is to blame.

        Returns:
            Whether to go on.
        """
        if not started:
            self._failed_starts += 1
            return self._failed_starts <= self.restarts
        self.reason = reason
        asked = left if self.share is None else min(self.share, left)
        if asked > 1:
            self.share = min(self.unit_rows, asked // 2)
            return True
        self.share = 1
        self._alone += 1
        if self._alone == _DEATHS_ALONE:
            self._alone = 0
            self.suspects += 1
        return self.suspects <= self.restarts
