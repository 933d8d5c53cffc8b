"""Leak-free division into prompt history and train, valid and test samples.

The first `cut` interactions of a user are for prompts and never become samples; every later one is
a sample of exactly one split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reki_ray.config import SplitConfig
from reki_ray.schema import SPLITS

PROMPT_HISTORY = -1
"""Split code of the prompt history."""

COLD_DROPPED = -2
"""Split code of interactions with a cold item that would be training or validation samples."""


@dataclass(frozen=True)
class Timeline:
    """Interactions sorted by user and time, as arrays.

    Args:
        user: Index of the user, ascending, (N,).
        timestamp: Seconds since the epoch, ascending within a user, (N,).
        item: Index of the item, (N,).
        users: Number of users U, including those without interactions.
    """

    user: np.ndarray
    timestamp: np.ndarray
    item: np.ndarray
    users: int
    items: int

    @property
    def counts(self) -> np.ndarray:
        """Interactions of each user, (U,)."""
        return np.bincount(self.user, minlength=self.users)

    @property
    def position(self) -> np.ndarray:
        """Index of each interaction among those of its user, (N,)."""
        starts = np.cumsum(self.counts) - self.counts
        positions: np.ndarray = np.arange(len(self.user)) - starts[self.user]
        return positions


def divide(timeline: Timeline, config: SplitConfig) -> tuple[np.ndarray, np.ndarray]:
    """Divide interactions into prompt history and samples.

    Returns:
        Interactions of each user that prompts may see, (U,); and (N,) the index into `SPLITS` of
        each interaction, or a negative code.
    """
    cuts = prompt_cuts(timeline.counts, config.prompt_history, config.prompt_history_share)
    if config.method == "time":
        ends = time_thresholds(timeline.timestamp[timeline.position >= cuts[timeline.user]], config)
        # Shortening a cut now only turns prompt history from after the training period into
        # samples of later splits.
        early = np.bincount(
            timeline.user, weights=timeline.timestamp < ends[0], minlength=timeline.users
        )
        cuts = np.minimum(cuts, early.astype(np.int64))
        code = np.searchsorted(ends, timeline.timestamp, side="right")
    else:
        has_samples = timeline.counts > cuts
        code = user_splits(has_samples, config)[timeline.user]
    code = np.where(timeline.position < cuts[timeline.user], PROMPT_HISTORY, code)
    cold = cold_items(timeline.items, config.cold_item_share, config.seed)
    learned_from = (code == SPLITS.index("train")) | (code == SPLITS.index("valid"))
    code = np.where(learned_from & cold[timeline.item], COLD_DROPPED, code)
    return cuts, code


def prompt_cuts(counts: np.ndarray, longest: int, share: float) -> np.ndarray:
    """Length (U,) of the prompt history: min(longest, floor(share * counts))."""
    # The small term keeps 0.1 * 30 = 2.9999... from losing an interaction.
    return np.minimum(longest, np.floor(counts * share + 1e-9).astype(np.int64))


def user_splits(eligible: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Draw a split (U,), an index into `SPLITS`, of each eligible user; others are in the first.

    Of three users or more, every split gets at least one.
    """
    users = np.random.default_rng(config.seed).permutation(np.flatnonzero(eligible))
    size = len(users)
    test = max(1, round(size * config.ratios[2]))
    valid = max(1, round(size * config.ratios[1]))
    splits = np.zeros(len(eligible), dtype=np.int64)
    splits[users[:test]] = SPLITS.index("test")
    splits[users[test : test + valid]] = SPLITS.index("valid")
    return splits


def time_thresholds(timestamps: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Exclusive ends (2,) of the training and validation periods, from sample times (S,).

    Equal times stay together, in the later split.
    """
    if not len(timestamps):
        return np.zeros(2, dtype=np.int64)
    shares = np.cumsum(config.ratios)[:2]
    index = np.minimum((shares * len(timestamps) + 1e-9).astype(np.int64), len(timestamps) - 1)
    ends: np.ndarray = np.partition(timestamps, index)[index]
    return ends


def cold_items(items: int, share: float, seed: int) -> np.ndarray:
    """Mask (I,) of round(share * I) items held out of training."""
    # A separate stream keeps the users' splits the same with and without cold items.
    generator = np.random.default_rng([seed, 1])
    cold = np.zeros(items, dtype=bool)
    cold[generator.permutation(items)[: round(share * items)]] = True
    return cold
