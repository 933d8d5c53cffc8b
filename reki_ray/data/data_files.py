"""Files of a place that a configuration names: a file, a folder or a glob on this machine."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from reki_ray.data.raw import unreadable
from reki_ray.errors import DataError

_LOGS: Final = {
    "_delta_log": "Delta Lake",
    ".hoodie": "Hudi",
    "metadata/*.metadata.json*": "Iceberg",
    "_versions/*.manifest": "Lance",
    "snapshot/LATEST": "Paimon",
    "_spark_metadata": "Spark streaming",
}
"""What lies in the folder of a table whose log says which of its files count."""


def find_files(place: str, suffixes: Sequence[str]) -> list[Path]:
    """Files of a place, absolute, in name order.

    In a folder, and below a folder that a glob matches, those with one of the suffixes count.
    What is hidden by its name or that of a folder in between (`.x`, `_x`) is no data, as Spark,
    Hive and Jupyter have it.

    Args:
        place: File, folder or glob; relative ones from the working directory.
        suffixes: Endings of names, in lower case.

    Raises:
        DataError: There is no file, a folder cannot be read, or it is a table with a log.
    """
    try:
        path = Path(place).expanduser()
        found = dict.fromkeys(map(os.path.abspath, _matches(path, tuple(suffixes))))
        files = sorted(map(Path, found))
        _refuse_logs({path.absolute(), *(file.parent for file in files)})
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, no home
        raise unreadable(Path(place).absolute(), error) from error
    if not files:
        remote = "://" in place
        raise DataError(
            "only files of this machine can be read" if remote else "there is no such file",
            where=place if path.is_absolute() or remote else f"{place} in {Path.cwd()}",
            todo="Copy them here, or mount their storage."
            if remote
            else f"Name a file, a folder with {' or '.join(suffixes)} files, or a glob, under "
            "data.source; relative ones count from the working directory.",
        )
    return files


def _matches(path: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    if path.is_file():
        yield str(path)
    elif path.is_dir():
        yield from _below(str(path), suffixes)
    else:
        for match in glob.iglob(str(path), recursive=True):
            if any(map(_is_hidden, set(Path(match).parts) - set(path.parts))):
                continue
            if os.path.isdir(match):
                yield from _below(match, suffixes)
            else:
                yield match


def _below(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Data files below a folder, through links too; one that cannot be read is an error."""
    seen = set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [name for name in folders if not _is_hidden(name) and real not in seen]
        if real not in seen:
            yield from (
                os.path.join(root, name)
                for name in names
                if name.lower().endswith(suffixes) and not _is_hidden(name)
            )
        seen.add(real)


def _is_hidden(name: str) -> bool:
    # A partition column may begin with an underscore: _day=2020-01-01.
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _raise(error: OSError) -> None:
    raise error


def _refuse_logs(folders: set[Path]) -> None:
    """Refuse folders of a table, or in one, whose log says which files count."""
    for folder in folders.union(*(folder.parents for folder in folders)):
        for mark, kind in _LOGS.items():
            if next(folder.glob(mark), None) is not None:
                raise DataError(
                    f"this is a {kind} table: its log alone says which of its files count, and "
                    "others hold rows that were deleted or replaced",
                    where=str(folder),
                    todo="Write its current rows to Parquet files in a folder of their own, for "
                    "example with Spark, DuckDB or the table format's library, and name that.",
                )
