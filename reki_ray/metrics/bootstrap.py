"""Confidence intervals over users, items and seeds together.

Samples of a user are correlated, and so are samples of an item, so both are drawn, and a sample
counts as often as its user was drawn times its item: the pigeonhole bootstrap (Owen, Annals of
Applied Statistics 2007). It counts the noise of single samples three times, so its deviations are
scaled to the variance of two-way clustering, which counts it once (Cameron, Gelbach & Miller,
Journal of Business & Economic Statistics 2011).

Seeds are too few to be drawn: draws of three never leave the range of the three. A normal with
their spread replaces them, widened by Student's t with one degree of freedom less than seeds; the
squares of both half-widths add up (Howe, Journal of the American Statistical Association 1974).
Users and items are widened by Student's t in the same way, which matters if they are few.

Models are compared on the same draws, seed by seed: a difference varies much less than its terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from reki_ray.metrics.classification import Array, Floats, Ints

Counts = npt.NDArray[np.uint8]

USERS_ITEMS: Final = ("users", "items")
SEEDS: Final = "seeds"

_SEED: Final = 0
_COUNT_BYTES: Final = 64 * 2**20
"""Memory of the counts of users and items that are drawn at once."""
_BLOCK_ROWS: Final = 16_384
"""Samples that are weighted at once."""
_RESAMPLES_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Ratio:
    """Part of a statistic of Q models: a sum of residuals over a sum of bases.

    Args:
        rows: Samples of the part (n,).
        residuals: Contribution of each, 0 in total, (n, Q).
        base: Contribution of each to the denominator (n,).
    """

    rows: Ints
    residuals: npt.NDArray[np.float32]
    base: Floats


def measure_seeds(
    scores: Mapping[Any, Mapping[int, Array]],
    samples: int,
    measure: Callable[[Array], tuple[float, Floats]],
) -> tuple[dict[str, Floats], npt.NDArray[np.float32]]:
    """Statistics (S,) of Q models with every seed, and the means (N, Q) of their residuals.

    Args:
        scores: By model, then seed; all models have the same seeds.
        measure: Statistic of scores, and what each sample contributes to it, 0 in total.
    """
    values: dict[str, Floats] = {}
    residuals = np.zeros((samples, len(scores)), dtype=np.float32)
    for column, (model, by_seed) in enumerate(scores.items()):
        measured = [measure(of_seed) for of_seed in by_seed.values()]
        values[model] = np.array([value for value, _ in measured])
        residuals[:, column] = np.mean([parts for _, parts in measured], axis=0)
    return values, residuals


class JointBootstrap:
    """Statistics of models on the same samples, with intervals over users, items and seeds.

    A statistic is a value plus ratios that are 0 over all samples. For a mean that is exact; for
    an AUC it is the first-order expansion, which needs no sorting per resample.

    Args:
        users: User of every sample (N,).
        items: Item of every sample (N,).
        values: Statistics (S,) with every seed, by name of the model.
        ratios: Parts of the mean over seeds; Q models in the order of `values`.
        resamples: Number B of resamples.
    """

    def __init__(
        self,
        users: Array,
        items: Array,
        values: Mapping[str, Floats],
        ratios: Sequence[Ratio],
        resamples: int,
        confidence: float,
    ) -> None:
        self._users, self._items = _places(users), _places(items)
        self._values = values
        self._columns = {name: column for column, name in enumerate(values)}
        self._ratios = ratios
        self._resamples = resamples
        self._confidence = confidence

    def value(self, name: str, minus: str | None = None) -> float | None:
        """Mean over seeds of a model, or of its difference to another; None if undefined."""
        values = self._by_seed(name, minus)
        return None if values is None else float(values.mean())

    def interval(self, name: str, minus: str | None = None) -> list[float] | None:
        """Interval [low, high] of `value`, clipped to [0, 1] unless it is a difference.

        None if the statistic is undefined, also if only in every resample.
        """
        values = self._by_seed(name, minus)
        if values is None:
            return None
        column = self._columns[name]
        other = None if minus is None else self._columns[minus]
        variance, drawn = self._variances(column, other)
        scale = np.sqrt(variance / drawn) if drawn > 0 else 0.0
        groups = min(int(self._users.max()), int(self._items.max())) + 1
        deviations = self._widened(groups) * scale * _less(self._deviations, column, other)
        seeds = len(values)
        if seeds > 1:
            of_seeds = np.sqrt(values.var(ddof=1) / seeds)
            deviations = deviations + self._widened(seeds) * of_seeds * self._normal
        bounds = interval(values.mean() + deviations, self._confidence)
        return bounds if bounds is None or minus is not None else np.clip(bounds, 0, 1).tolist()

    def _widened(self, draws: int) -> float:
        """Ratio of the half-widths of Student's t for this many draws and of the normal."""
        upper = (1 + self._confidence) / 2
        return float(stats.t.ppf(upper, max(draws - 1, 1)) / stats.norm.ppf(upper))

    def _by_seed(self, name: str, minus: str | None) -> Floats | None:
        if name not in self._values or (minus is not None and minus not in self._values):
            return None
        return self._values[name] - (0.0 if minus is None else self._values[minus])

    @cached_property
    def _deviations(self) -> Floats:
        """Sum of the ratios of every resample (B, Q); NaN if one has no base."""
        resampled = np.zeros((self._resamples, len(self._values)))
        for start, users, items in self._draws():
            chunk = slice(start, start + users.shape[1])
            for ratio in self._ratios:
                *residuals, base = self._weighted(ratio, users, items)
                resampled[chunk] += np.transpose(residuals / np.where(base > 0, base, np.nan))
        return resampled

    def _weighted(self, ratio: Ratio, users: Counts, items: Counts) -> Floats:
        """Sums of residuals, and below them of bases, in R resamples (Q + 1, R)."""
        total = np.zeros((len(self._values) + 1, users.shape[1]))
        for start in range(0, len(ratio.rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            rows = ratio.rows[block]
            weights = np.take(users, self._users[rows], axis=0)
            weights *= np.take(items, self._items[rows], axis=0)
            columns = np.column_stack([ratio.residuals[block], ratio.base[block]])
            # Not a matrix product: for matrices this narrow BLAS would wait for its threads.
            total += np.einsum("nq,nr->qr", columns.astype(np.float32), weights.astype(np.float32))
        return total

    def _draws(self) -> Iterator[tuple[int, Counts, Counts]]:
        """Index of the first of R resamples, and their counts of every user and item."""
        sizes = [int(places.max()) + 1 for places in (self._users, self._items)]
        step = min(max(_COUNT_BYTES // sum(sizes), 1), _RESAMPLES_AT_ONCE)
        for start in range(0, self._resamples, step):
            numbers = range(start, min(start + step, self._resamples))
            users, items = (np.empty((size, len(numbers)), dtype=np.uint8) for size in sizes)
            for column, number in enumerate(numbers):
                generator = np.random.default_rng([_SEED, number])
                for counts, size in zip((users, items), sizes, strict=True):
                    drawn = generator.integers(0, size, size)
                    # A product of two fits into a byte; more than 15 has a chance of 1e-14.
                    counts[:, column] = np.minimum(np.bincount(drawn, minlength=size), 15)
            yield start, users, items

    def _variances(self, column: int, other: int | None) -> tuple[float, float]:
        """Variance of a statistic over users and items, and of its pigeonhole resamples."""
        influence = np.zeros(len(self._users))
        for ratio in self._ratios:
            influence[ratio.rows] += _less(ratio.residuals, column, other) / ratio.base.sum()
        users, items, pairs = (
            float(np.square(np.bincount(groups, influence)).sum())
            for groups in (self._users, self._items, self._pairs)
        )
        return max(users + items - pairs, users, items), users + items + pairs

    @cached_property
    def _pairs(self) -> Ints:
        """Number of every sample's pair of user and item (N,)."""
        return _places(self._users * (int(self._items.max()) + 1) + self._items)

    @cached_property
    def _normal(self) -> Floats:
        """Quantiles of the standard normal in random order (B,)."""
        quantiles: Floats = stats.norm.ppf((np.arange(self._resamples) + 0.5) / self._resamples)
        return np.random.default_rng(_SEED).permutation(quantiles)


def drawn_over(seeds: int) -> list[str]:
    """Sources of variance of an interval over this many seeds."""
    return [*USERS_ITEMS, *([SEEDS] if seeds > 1 else [])]


def interval(values: Floats, confidence: float) -> list[float] | None:
    """Percentile interval [low, high] of resampled values (B,); None if all are NaN."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return [float(low), float(high)]


def is_apart(bounds: list[float] | None, over: Sequence[str]) -> bool:
    """Whether a difference is significant: its interval is over seeds too, and excludes zero."""
    return SEEDS in over and bounds is not None and not bounds[0] <= 0 <= bounds[1]


def _less(table: Array, column: int, other: int | None) -> Floats:
    """A column, or its difference to another one."""
    values: Floats = table[:, column].astype(np.float64)
    return values if other is None else values - table[:, other]


def _places(values: Array) -> Ints:
    """Index of every value among the distinct ones (N,)."""
    index: Ints = np.unique(values, return_inverse=True)[1].reshape(-1)
    return index
