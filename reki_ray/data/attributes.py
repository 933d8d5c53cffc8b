"""Attributes of users and items: map<str, list<str>> columns, and MovieLens' vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from reki_ray.schema import ATTRIBUTES, ITEMS_SCHEMA

GENDER: Final = "gender"
AGE: Final = "age"
OCCUPATION: Final = "occupation"
GENRE: Final = "genre"
YEAR: Final = "year"
DECADE: Final = "decade"

AGE_BUCKETS: Final[dict[int, str]] = {
    1: "Under 18",
    18: "18-24",
    25: "25-34",
    35: "35-44",
    45: "45-49",
    50: "50-55",
    56: "56+",
}
"""Lowest age of a bucket (its code in MovieLens-1M) -> name."""

_TITLE_YEAR = re.compile(r"\((\d{4})\)\s*$")


def attribute_maps(attributes: Mapping[str, Sequence[Sequence[str]]], size: int) -> pa.Array:
    """Column (N,) of maps of names to their N lists, without empty ones; null without any."""
    kind = ITEMS_SCHEMA.field(ATTRIBUTES).type
    if not attributes:
        return pa.nulls(size, kind)
    rows = [
        [(name, list(values[row])) for name, values in attributes.items() if values[row]]
        for row in range(size)
    ]
    return pa.array(rows, kind)


def age_bucket(age: int) -> str:
    """MovieLens-1M's name of an age in years."""
    return AGE_BUCKETS[max((low for low in AGE_BUCKETS if low <= age), default=1)]


def years_and_decades(years: Sequence[str | None]) -> tuple[list[list[str]], list[list[str]]]:
    """Attribute values of release years; anything but four digits gives none."""
    known = [year if year and re.fullmatch(r"\d{4}", year) else None for year in years]
    return (
        [[year] if year else [] for year in known],
        [[f"{year[:3]}0s"] if year else [] for year in known],
    )


def year_of_title(title: str | None) -> str | None:
    """Year at the end of a title, as in `Toy Story (1995)`."""
    match = _TITLE_YEAR.search(title or "")
    return match.group(1) if match else None
