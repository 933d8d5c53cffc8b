"""How many of the validation split's likes are among the candidates."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from reki_ray.retrieval.positives import Positives
from reki_ray.training.dataset import Dataset, Ints

Vectors = npt.NDArray[np.float32]

COUNT: Final = 100
"""Candidates that are looked at."""

MOST: Final = 2000
"""Samples that are measured: the standard error of a share is then about 0.01."""


def drawn(positives: Positives, seed: int) -> Positives:
    """At most `MOST` of the samples, evenly drawn."""
    order = np.random.default_rng(seed).permutation(len(positives))[:MOST]
    return positives.take(np.sort(order))


def recall(dataset: Dataset, samples: Positives, scores: Vectors) -> float | None:
    """Share of samples whose item is among the best ones that the user had not seen.

    Args:
        dataset: What users saw.
        samples: N positive samples.
        scores: Of all items for each (N, I); items of one score count in their order.

    Returns:
        None where there are no samples.
    """
    hits = [
        _is_hit(row, int(item), _seen(dataset, int(user), int(position)))
        for row, item, user, position in zip(
            scores, samples.items, samples.users, samples.positions, strict=True
        )
    ]
    return float(np.mean(hits)) if hits else None


def _seen(dataset: Dataset, user: int, position: int) -> Ints:
    start = dataset.offsets[user]
    return dataset.past_items[start : start + position]


def _is_hit(scores: Vectors, item: int, seen: Ints) -> bool:
    """Whether fewer than `COUNT` unseen items stand before it."""
    before = scores > scores[item]
    before[:item] |= scores[:item] == scores[item]
    before[seen] = False
    return item not in seen and int(before.sum()) < COUNT
