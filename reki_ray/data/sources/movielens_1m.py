"""MovieLens-1M: a million ratings of 3,883 films by 6,040 users (Harper and Konstan, 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reki_ray.config import MovieLens1MSource
from reki_ray.data.attributes import (
    AGE,
    AGE_BUCKETS,
    DECADE,
    GENDER,
    GENRE,
    OCCUPATION,
    YEAR,
    year_of_title,
    years_and_decades,
)
from reki_ray.data.delimited import read_delimited
from reki_ray.data.dialects import TextFormat
from reki_ray.data.list_cells import to_lists
from reki_ray.data.raw_tables import MappedTable, RawTable, TableKind, identify_files
from reki_ray.data.remote_files import InputFolder, identify_remote
from reki_ray.schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID

_AGES = {str(low): name for low, name in AGE_BUCKETS.items()}
_OCCUPATIONS = (
    *("other", "academic/educator", "artist", "clerical/admin", "college/grad student"),
    *("customer service", "doctor/health care", "executive/managerial", "farmer", "homemaker"),
    *("K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist"),
    *("self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer"),
)
_CODES = {str(code): name for code, name in enumerate(_OCCUPATIONS)}


class MovieLens1M:
    """Reads ratings.dat (or ratings.dat.gz), movies.dat and users.dat."""

    timestamp_unit = "s"

    def __init__(self, config: MovieLens1MSource) -> None:
        self._folder = InputFolder(config.path)

    def identity(self) -> object:
        """Hashes of the three files."""
        names = [self._ratings_name(), "movies.dat", "users.dat"]
        remote = self._folder.remote(names)
        if remote is not None:
            return identify_remote(remote)
        return identify_files([self._folder.path(name) for name in names])

    def interactions(self) -> MappedTable:
        """Ratings from 1 to 5 with seconds."""
        names = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
        raw = _read("interactions", self._ratings(), "utf-8", names)
        return MappedTable.of(raw, {name: name for name in names})

    def items(self) -> MappedTable:
        """Films; the year is split from the title, which stays whole."""
        path = self._folder.path("movies.dat")
        raw = _read("items", path, _encoding(path), (ITEM_ID, TITLE, GENRE))
        titles = raw.rows.column(TITLE).to_pylist()
        years, decades = years_and_decades([year_of_title(title) for title in titles])
        genres, _, _ = to_lists(raw.rows.column(GENRE), "|", where=f"{path}, genres")
        values = {GENRE: genres, YEAR: years, DECADE: decades}
        return MappedTable.of(raw, {ITEM_ID: ITEM_ID, TITLE: TITLE}, values)

    def users(self) -> MappedTable:
        """Users with gender, age bucket and occupation; the zip code is dropped."""
        names = (USER_ID, GENDER, AGE, OCCUPATION, "zip_code")
        raw = _read("users", self._folder.path("users.dat"), "latin-1", names)
        ages = raw.rows.column(AGE).to_pylist()
        occupations = raw.rows.column(OCCUPATION).to_pylist()
        values = {
            GENDER: to_lists(raw.rows.column(GENDER), "", where=GENDER)[0],
            AGE: [[_AGES[code]] if code in _AGES else [] for code in ages],
            OCCUPATION: [[_CODES[code]] if code in _CODES else [] for code in occupations],
        }
        problems = {
            "unknown age code": np.array([code not in _AGES for code in ages], dtype=bool),
            "unknown occupation code": np.array([c not in _CODES for c in occupations], dtype=bool),
        }
        return MappedTable.of(raw, {USER_ID: USER_ID}, values, problems)

    def _ratings(self) -> Path:
        return self._folder.path(self._ratings_name())

    def _ratings_name(self) -> str:
        plain, packed = "ratings.dat", "ratings.dat.gz"
        return packed if not self._folder.has(plain) and self._folder.has(packed) else plain


def _read(kind: TableKind, path: Path, encoding: str, names: tuple[str, ...]) -> RawTable:
    layout = TextFormat("::", quote=None, encoding=encoding, header=names)
    return read_delimited(kind, [path], layout, names)


def _encoding(path: Path) -> str:
    """The original is Latin-1, which decodes anything; converted copies are UTF-8."""
    try:
        path.read_bytes().decode("utf-8")
    except (UnicodeDecodeError, OSError):  # the reader reports a file that cannot be opened
        return "latin-1"
    return "utf-8"
