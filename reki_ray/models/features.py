"""Vocabularies of the model's features: ids and attribute texts to embedding rows.

Row 0 of every vocabulary is padding, row 1 an unknown item or a missing rating. An attribute value
that training never saw is padding, like a missing one: its row could not have learned anything.
The vocabularies are built from training samples, their histories and their users alone, so that
validation and test ids look to the model as they would online.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_GAP: Final = r"[ '\u00a0\u202f\u2019]"

_CURRENCY: Final = "$€£¥₹₽₩₺₫₪₴฿"

_DIGITS: Final = "|".join(
    (
        r"(?P<point>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)",
        rf"(?P<thousands>\d{{1,3}}(?:(?:,\d{{2,3}})*,\d{{3}}|(?:{_GAP}\d{{3}})+)(?:\.\d+)?)",
        rf"(?P<comma>\d{{1,3}}(?:(?:\.\d{{3}})+|(?:{_GAP}\d{{3}})+),\d+"
        r"|\d{1,3}(?:\.\d{3}){2,}|\d+,\d+)",
    )
)

_AMOUNT: Final = re.compile(
    rf"(?P<sign>[+-]?)(?P<before>(?:[A-Z]{{0,3}}[{_CURRENCY}]|[A-Z]{{3}} ) ?)?(?P<minus>-?)"
    rf"(?:{_DIGITS})(?P<after> ?(?:[%‰{_CURRENCY}]|[^\W\d_°²³]{{1,12}}))?"
)

_DIVIDERS: Final = re.compile(r"[., '\u00a0\u202f\u2019]")


def read_amount(text: str) -> tuple[float, str] | None:
    """Parse a text as a finite number and its unit, which may be empty; None if it is neither.

    Besides `9.99` and `1e3`: `$1,234.50`, `1.234,50 €`, `9,99`, `45 %`, `12 kg`, `USD 5`. One
    comma before three digits separates thousands.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        return None
    digits, mark = match["point"], ""
    if match["thousands"]:
        digits, mark = match["thousands"], "."
    elif match["comma"]:
        digits, mark = match["comma"], ","
    if mark:
        whole, _, fraction = digits.partition(mark) if digits.count(mark) == 1 else (digits, "", "")
        digits = f"{_DIVIDERS.sub('', whole)}.{fraction}"
    number = float(f"{match['sign'] or match['minus']}{digits}")
    unit = f"{match['before'] or ''}{match['after'] or ''}".replace(" ", "")
    return (number, unit) if math.isfinite(number) else None


def describe_amounts(values: Mapping[str, int]) -> str:
    """Problems of texts, with their counts, that should be numbers of one unit; empty if none."""
    units: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for text, count in values.items():
        amount = read_amount(text)
        if amount is None:
            others[text] += count
        else:
            units[amount[1]] += count
    odd = []
    if others:
        shown = ", ".join(repr(text) for text, _ in others.most_common(3))
        odd.append(f"{others.total()} of {sum(values.values())} are not numbers, as {shown}")
    if len(units) > 1:
        shown = ", ".join(f"{unit or 'none'} ({count})" for unit, count in units.most_common(5))
        odd.append(f"their units differ: {shown}")
    return "; ".join(odd)


Attributes = Mapping[str, Sequence[str]]
"""Values by attribute name, as {"genre": ["Action", "Drama"]}."""

Rows = npt.NDArray[np.int32]
"""Embedding rows."""

PADDING: Final = 0

UNKNOWN: Final = 1

FIRST_OWN_ROW: Final = 2

MAX_VALUES: Final = 16
"""Most values of one attribute that a record contributes; the surplus is cut."""

MAX_RATING_LEVELS: Final = 20
"""Finer rating scales are divided into this many quantiles of all ratings."""


GAP_BOUNDS: Final = tuple(
    seconds * count
    for seconds, counts in ((60, (1, 10)), (3_600, (1, 6)), (86_400, (1, 3, 7, 30, 90, 365)))
    for count in counts
)
"""Ascending lower bounds of the levels of a time gap, seconds; shorter gaps are a level too."""

NO_TIME: Final = -1
"""Time of an interaction without time."""

GAP_ROWS: Final = 1 + 1 + len(GAP_BOUNDS)
"""Rows of the embedding of time gaps: padding, and the levels."""


@dataclass(frozen=True)
class Field:
    """One attribute: categories, or numbers in buckets.

    Args:
        values: Known categories; the embedding row of values[k] is 2 + k.
        bounds: Ascending lower bounds of the buckets of an attribute that is a number; the
            row of bucket k is 2 + k. Empty for categories.
    """

    values: tuple[str, ...]
    width: int
    bounds: tuple[float, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the embedding, with padding and unknown."""
        return len(self.values) + len(self.bounds) + FIRST_OWN_ROW

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self.values, FIRST_OWN_ROW)}

    def encode(self, records: Sequence[Sequence[str]]) -> Rows:
        """Embedding rows (N, width) of N records; padding at the end and for unknown values."""
        rows = np.full((len(records), self.width), PADDING, dtype=np.int32)
        for row, values in zip(rows, records, strict=True):
            known = [place for value in values if (place := self._row(value)) != PADDING]
            row[: len(known)] = known[: self.width]
        return rows

    def _row(self, value: str) -> int:
        if not self.bounds:
            return self._index.get(value, PADDING)
        amount = read_amount(value)
        if amount is None:
            return PADDING
        return FIRST_OWN_ROW + bisect.bisect_right(self.bounds[1:], amount[0])


@dataclass(frozen=True)
class EncodedItems:
    """Items as embedding rows.

    Args:
        ids: Rows of the item ids, (N,).
        attributes: Rows of every attribute, (N, width of the field).
    """

    ids: Rows
    attributes: dict[str, Rows]


@dataclass(frozen=True)
class FeatureSpace:
    """All vocabularies of one trained model.

    Args:
        items: Item ids with an own embedding row; row of items[k] is 2 + k.
        item_counts: Training samples of each of these items.
        user_fields: Attributes of users; empty for a model without profile.
        rating_levels: Ascending lower bounds of the rating levels; the row of level k is 2 + k,
            row 1 is an interaction without a rating.
    """

    items: tuple[str, ...]
    item_counts: tuple[int, ...]
    item_fields: dict[str, Field]
    user_fields: dict[str, Field]
    rating_levels: tuple[float, ...]

    @classmethod
    def build(
        cls,
        items: Mapping[str, Attributes | None],
        users: Iterable[Attributes | None],
        ratings: npt.NDArray[np.float32],
        counts: Mapping[str, int] | None = None,
        buckets: Mapping[str, int] | None = None,
    ) -> FeatureSpace:
        """Vocabularies of the training data.

        Args:
            items: Attributes of every item in training samples or their histories, by id.
            users: Attributes of every user with training samples; empty for a model without
                profile.
            ratings: Ratings in the histories of training samples, NaN if missing.
            buckets: Number of quantile buckets of each attribute that is a number.
        """
        counts, buckets = counts or {}, buckets or {}
        return cls(
            items=tuple(sorted(items)),
            item_counts=tuple(counts.get(item, 0) for item in sorted(items)),
            item_fields=_fields(items.values(), buckets),
            user_fields=_fields(users, buckets),
            rating_levels=_rating_levels(ratings),
        )

    @property
    def item_rows(self) -> int:
        """Rows of the item id embedding."""
        return len(self.items) + FIRST_OWN_ROW

    @property
    def rating_rows(self) -> int:
        """Rows of the rating embedding."""
        return len(self.rating_levels) + FIRST_OWN_ROW

    @cached_property
    def _item_index(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.items, FIRST_OWN_ROW)}

    def encode_items(
        self, ids: Sequence[str], attributes: Sequence[Attributes | None]
    ) -> EncodedItems:
        """Rows of N items; an id that training never saw gets row 1."""
        rows = [self._item_index.get(item, UNKNOWN) for item in ids]
        return EncodedItems(
            ids=np.array(rows, dtype=np.int32), attributes=_encode(self.item_fields, attributes)
        )

    def encode_users(self, attributes: Sequence[Attributes | None]) -> dict[str, Rows]:
        """Rows (N, width) of every attribute of N users."""
        return _encode(self.user_fields, attributes)

    def encode_ratings(self, ratings: npt.NDArray[np.floating[Any]]) -> Rows:
        """Rows of ratings of any shape; NaN is an interaction without a rating."""
        levels = np.asarray(self.rating_levels[1:], dtype=np.float32)
        # Bounds and ratings are compared in one precision, or 3.6 would miss its own level.
        level = np.searchsorted(levels, ratings.astype(np.float32), side="right")
        rows = np.where(np.isnan(ratings) | (not self.rating_levels), UNKNOWN, level + 2)
        return rows.astype(np.int32)


def encode_gaps(times: npt.NDArray[np.integer[Any]]) -> Rows:
    """Rows of the time from each interaction to the latest of its history.

    Gaps to the latest interaction, not to now: a score does not depend on the time of scoring.

    Args:
        times: Seconds, the latest in the last column (..., L), or `NO_TIME`.

    Returns:
        Rows (..., L); padding where an interaction or the latest one has no time.
    """
    gaps = times[..., -1:] - times
    levels = np.searchsorted(GAP_BOUNDS, gaps, side="right") + 1
    known = (times != NO_TIME) & (times[..., -1:] != NO_TIME)
    rows: Rows = np.where(known, levels, PADDING).astype(np.int32)
    return rows


def _fields(records: Iterable[Attributes | None], buckets: Mapping[str, int]) -> dict[str, Field]:
    values: dict[str, Counter[str]] = {}
    widths: dict[str, int] = {}
    for record in records:
        for name, texts in (record or {}).items():
            values.setdefault(name, Counter()).update(texts[:MAX_VALUES])
            widths[name] = max(widths.get(name, 1), min(len(texts), MAX_VALUES))
    return {
        name: Field((), widths[name], _quantiles(_numbers(values[name]), buckets[name]))
        if name in buckets
        else Field(tuple(sorted(values[name])), widths[name])
        for name in sorted(values)
    }


def _numbers(values: Counter[str]) -> npt.NDArray[np.float64]:
    """The amounts among texts, each as often as it occurs; [0] without any."""
    amounts = [(read_amount(text), count) for text, count in values.items()]
    known = [(amount[0], count) for amount, count in amounts if amount is not None] or [(0.0, 1)]
    numbers, counts = zip(*known, strict=True)
    return np.repeat(np.array(numbers), counts)


def _quantiles(numbers: npt.NDArray[np.floating[Any]], buckets: int) -> tuple[float, ...]:
    """Lower bounds of at most `buckets` buckets of about equally many numbers (N,)."""
    firsts = np.arange(buckets) * len(numbers) // buckets
    return tuple(float(bound) for bound in np.unique(np.sort(numbers)[firsts]))


def _encode(fields: Mapping[str, Field], records: Sequence[Attributes | None]) -> dict[str, Rows]:
    return {
        name: field.encode([(record or {}).get(name, ()) for record in records])
        for name, field in fields.items()
    }


def _rating_levels(ratings: npt.NDArray[np.float32]) -> tuple[float, ...]:
    given = ratings[~np.isnan(ratings)]
    levels = np.unique(given)
    if len(levels) > MAX_RATING_LEVELS:
        return _quantiles(given, MAX_RATING_LEVELS)
    return tuple(float(level) for level in levels)
