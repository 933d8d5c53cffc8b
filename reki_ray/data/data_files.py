"""Finds the files of a configured place: a file, a folder or a glob, here or named by URI."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from reki_ray.data.raw_tables import identify_files, reading_file
from reki_ray.data.remote_files import (
    RemoteFile,
    exists,
    fetch_all,
    identify_remote,
    is_remote,
    list_files,
    local_place,
)
from reki_ray.errors import DataError

_LOGS: Final = {
    "_delta_log": "Delta Lake",
    ".hoodie": "Hudi",
    "metadata/*.metadata.json*": "Iceberg",
    "_versions/*.manifest": "Lance",
    "snapshot/LATEST": "Paimon",
    "_spark_metadata": "Spark streaming",
}
"""Marker in the folder of a table whose log decides which files count -> format."""
_ACID: Final = re.compile(
    r"(?:delete_)?delta_\d{7}_\d{7}(?:_\d{4})?(?:_v\d+)?|base_\d{7}(?:_v\d+)?"
)
"""Folders of Hive ACID tables; names of other lengths are dates."""
_SYSTEM_FOLDERS: Final = frozenset(
    {"$recycle.bin", "system volume information", "lost+found"}
    | {"#recycle", "#snapshot", "@eadir"}
)
"""Folders of operating systems and storage devices, in lower case."""
_SHOWN: Final = 5
_LEAST_PARTS: Final = 2
_SEARCHED: Final = 8


def find_files(place: str, suffixes: Sequence[str]) -> list[Path]:
    """Files of a place (file, folder or glob, relative to the working directory) in name order.

    In folders, including those that a glob matches, files with one of the suffixes (lower case)
    count. Names that begin with `.` or `_`, or are in such a folder, are skipped, as in Spark, Hive
    and Jupyter; so are temporary Office files and system folders.

    Remote files are fetched into this node's cache, see `remote_files`.

    Raises:
        DataError: There is no file, a folder cannot be read, or it is a table with a log.
        EngineError: A remote file cannot be fetched.
    """
    if is_remote(place):
        return fetch_all(_remote(place, suffixes))
    place = local_place(place)
    files, _ = _divided(place, suffixes)
    path = Path(place).expanduser()
    _refuse_logs(path, files)
    if not files:
        raise _none(
            place if path.is_absolute() else f"{place} in {Path.cwd()}",
            suffixes,
            "; relative ones count from the working directory",
        )
    return files


def identify_place(place: str, suffixes: Sequence[str]) -> list[dict[str, object]]:
    """Names of a place's files with their hashes, or with the fingerprints of remote ones."""
    if is_remote(place):
        return identify_remote(_remote(place, suffixes))
    return identify_files(find_files(place, suffixes))


def _none(where: str, suffixes: Sequence[str], more: str = "") -> DataError:
    return DataError(
        "there is no such file",
        where=where,
        todo=f"Name a file, a folder with {' or '.join(suffixes)} files, or a glob, under "
        f"data.source{more}.",
    )


def left_out(place: str, suffixes: Sequence[str]) -> str:
    """A sentence on the skipped files of a place, or an empty string; see `find_files`."""
    if is_remote(place):
        _, remote = _divided_remote(place, suffixes)
        others = [Path(file.url) for file in remote]
    else:
        _, others = _divided(local_place(place), suffixes)
    if not others:
        return ""
    shown = ", ".join(file.name for file in others[:_SHOWN])
    more = f" and {len(others) - _SHOWN} more" * (len(others) > _SHOWN)
    common = os.path.commonpath([file.parent for file in others])
    where = place if is_remote(place) else common
    return f"skipped in {where}, by their suffixes: {shown}{more}; a glob takes files of any name"


def _divided(place: str, suffixes: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Data files of a place, and files skipped for their suffixes, in name order."""
    data: set[str] = set()
    others: set[str] = set()
    with reading_file(Path(place)):
        for file, is_named in _matches(Path(place).expanduser()):
            is_data = is_named or file.lower().endswith(tuple(suffixes))
            (data if is_data else others).add(os.path.abspath(file))
    return sorted(map(Path, data)), sorted(map(Path, others - data))


def _divided_remote(
    place: str, suffixes: Sequence[str]
) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """Data files of a remote place, and files skipped for their suffixes, in name order."""
    named_parts = set(place.split("/"))
    data, others = [], []
    for file, is_named in list_files(place):
        if any(map(_is_hidden, set(file.parts) - named_parts)):
            continue
        is_data = is_named or file.name.lower().endswith(tuple(suffixes))
        (data if is_data else others).append(file)
    return data, others


def _remote(place: str, suffixes: Sequence[str]) -> list[RemoteFile]:
    """Data files of a remote place.

    Raises:
        DataError: There is none, or they are of a table with a log.
    """
    files, _ = _divided_remote(place, suffixes)
    if not files:
        raise _none(place, suffixes)
    if not place.startswith(("http://", "https://")):
        _refuse_remote_logs(place, files)
    return files


def _refuse_remote_logs(place: str, files: Sequence[RemoteFile]) -> None:
    """As `_refuse_logs`: a request each for the folders above the place, and some of the files."""
    fixed = place.split("*", maxsplit=1)[0].split("?", maxsplit=1)[0].split("[", maxsplit=1)[0]
    folders = {PurePosixPath(fixed), *PurePosixPath(fixed).parents}
    below = sorted({PurePosixPath(file.url).parent for file in files})
    for folder in sorted(folders.union(below[:_SEARCHED], *(f.parents for f in below[:_SEARCHED]))):
        if len(folder.parts) < _LEAST_PARTS:  # the scheme alone
            continue
        if _ACID.fullmatch(folder.name):
            raise _log_error(_url(folder.parent), "Hive ACID")
        for mark, kind in _LOGS.items():
            if exists(f"{_url(folder)}/{mark}"):
                raise _log_error(_url(folder), kind)


def _url(path: PurePosixPath) -> str:
    return str(path).replace(":/", "://", 1)


def _matches(path: Path) -> Iterator[tuple[str, bool]]:
    """Files of a place, and whether the place names each itself, not only its folder."""
    if path.is_file():
        yield str(path), True
    elif path.is_dir():
        yield from ((file, False) for file in _below(str(path)))
    else:
        for match in glob.iglob(str(path), recursive=True):
            if any(map(_is_hidden, set(Path(match).parts) - set(path.parts))):
                continue
            if os.path.isdir(match):
                yield from ((file, False) for file in _below(match))
            else:
                yield match, True


def _below(folder: str) -> Iterator[str]:
    """Visible files below a folder, following links; an unreadable folder is an error."""
    seen = set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [name for name in folders if not _is_hidden(name) and real not in seen]
        if real not in seen:
            yield from (os.path.join(root, name) for name in names if not _is_hidden(name))
        seen.add(real)


def _is_hidden(name: str) -> bool:
    # A partition column may begin with an underscore: _day=2020-01-01.
    return (
        name.startswith((".", "~$"))
        or (name.startswith("_") and "=" not in name)
        or name.lower() in _SYSTEM_FOLDERS
    )


def _raise(error: OSError) -> None:
    raise error


def _refuse_logs(place: Path, files: Sequence[Path]) -> None:
    """Reject tables whose log decides which files count, and files inside, following links."""
    with reading_file(place):
        folders = {place.absolute(), *(file.parent for file in files)}
        folders |= {place.resolve(), *(file.resolve().parent for file in files)}
        for folder in folders.union(*(folder.parents for folder in folders)):
            if _ACID.fullmatch(folder.name):
                raise _log_error(folder.parent, "Hive ACID")
            for mark, kind in _LOGS.items():
                if next(folder.glob(mark), None) is not None:
                    raise _log_error(folder, kind)


def _log_error(folder: Path | str, kind: str) -> DataError:
    return DataError(
        f"this is a {kind} table: its log decides which files count; others hold deleted or "
        "replaced rows",
        where=str(folder),
        todo="Write its current rows to Parquet files in a folder of their own, for example with "
        "Spark, DuckDB or the table format's library, and name that.",
    )
