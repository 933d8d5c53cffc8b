"""The data sets of the configuration."""

from __future__ import annotations

from reki_ray.config import DataConfig, MovieLens1MSource, MovieLens100KSource
from reki_ray.core.downloads import Say
from reki_ray.data.raw_tables import DataSource
from reki_ray.data.sources.files import Files
from reki_ray.data.sources.movielens_1m import MovieLens1M
from reki_ray.data.sources.movielens_100k import MovieLens100K


def open_source(config: DataConfig, say: Say | None = None) -> DataSource:
    """Source of section `data`; nothing is read yet, and `say` announces downloads."""
    if isinstance(config.source, MovieLens100KSource):
        return MovieLens100K(config.source, say)
    if isinstance(config.source, MovieLens1MSource):
        return MovieLens1M(config.source)
    return Files(config.source)
