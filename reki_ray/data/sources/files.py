"""The user's own Parquet or CSV files, with mapped column names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from reki_ray.config import Dialect, FileSource
from reki_ray.data.compression import COMPRESSED
from reki_ray.data.data_files import find_files, identify_place, left_out
from reki_ray.data.delimited import read_delimited
from reki_ray.data.dialects import TextFormat
from reki_ray.data.list_cells import to_lists
from reki_ray.data.parquet import read_parquet
from reki_ray.data.raw_tables import (
    WRONG_ENCODING,
    MappedTable,
    RawTable,
    TableKind,
)
from reki_ray.schema import ITEM_ID, LABEL, RATING, TEXT, TIMESTAMP, TITLE, USER_ID

FileFormat = Literal["parquet", "csv"]

SUFFIXES: Final[dict[FileFormat, tuple[str, ...]]] = {
    "parquet": (".parquet", ".parq", ".pq"),
    "csv": tuple(text + packed for text in (".csv", ".tsv") for packed in ("", *COMPRESSED)),
}
"""Suffixes of each format, in lower case."""


def text_format(dialect: Dialect) -> TextFormat:
    """Layout of CSV files."""
    utf8 = dialect.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    return TextFormat(
        separator=dialect.separator,
        quote=dialect.quote,
        escape=dialect.escape,
        encoding="utf-8-sig" if utf8 else dialect.encoding,  # drops a byte order mark
        null_words=dialect.null_words,
        has_header=dialect.header,
        skip_lines=dialect.skip_lines,
    )


class Files:
    """Reads interactions, items and users from files, folders or globs.

    A column mapped to null does not exist. Without rating and label, every interaction is positive.
    """

    def __init__(self, config: FileSource) -> None:
        self._config = config
        self._columns = config.columns

    @property
    def timestamp_unit(self) -> str:
        """Configured unit or format."""
        return self._columns.timestamp_unit

    def identity(self) -> object:
        """Hashes of all files, or the fingerprints of remote ones."""
        places = (self._config.interactions, self._config.items, self._config.users)
        suffixes = SUFFIXES[self._config.kind]
        return [identify_place(place, suffixes) for place in places if place is not None]

    def interactions(self) -> MappedTable:
        """Interactions with rating, label or neither."""
        columns = self._columns
        optional = {RATING: columns.rating, LABEL: columns.label}
        names = {
            USER_ID: columns.user_id,
            ITEM_ID: columns.item_id,
            TIMESTAMP: columns.timestamp,
            **{ours: theirs for ours, theirs in optional.items() if theirs is not None},
        }
        raw = self._read("interactions", self._config.interactions, list(names.values()))
        return MappedTable.of(raw, names, decimal=self._config.dialect.decimal)

    def items(self) -> MappedTable:
        """Items with title, attributes and description."""
        columns = self._columns
        names = {ITEM_ID: columns.item_id, TITLE: columns.title}
        if columns.text is not None:
            names[TEXT] = columns.text
        return self._catalogue("items", self._config.items, names, columns.item_attributes)

    def users(self) -> MappedTable | None:
        """Users with attributes, or None without a configured file."""
        if self._config.users is None:
            return None
        names = {USER_ID: self._columns.user_id}
        return self._catalogue("users", self._config.users, names, self._columns.user_attributes)

    def _catalogue(
        self, kind: TableKind, place: str, names: dict[str, str], attributes: Sequence[str]
    ) -> MappedTable:
        raw = self._read(kind, place, [*names.values(), *attributes])
        values = {}
        problems = {WRONG_ENCODING: np.zeros(len(raw.rows), dtype=bool)}
        for name in attributes:
            values[name], unreadable, nested = to_lists(
                raw.rows.column(name),
                self._columns.list_separator,
                where=f"{raw.files[0]}, column {name}",
            )
            problems[WRONG_ENCODING] |= unreadable
            problems[f"{name} holds lists of lists or of objects"] = nested
        return MappedTable.of(raw, names, values, problems)

    def _read(self, kind: TableKind, place: str, required: list[str]) -> RawTable:
        paths = self._find(place)
        if self._config.kind == "parquet":
            raw = read_parquet(kind, paths, required)
        else:
            raw = read_delimited(kind, paths, text_format(self._config.dialect), required)
        others = left_out(place, SUFFIXES[self._config.kind])
        return replace(raw, notes=(f"{kind}: {others}",)) if others else raw

    def _find(self, place: str) -> list[Path]:
        return find_files(place, SUFFIXES[self._config.kind])
