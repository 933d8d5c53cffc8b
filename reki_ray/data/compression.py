"""Opens text files, plain or compressed, whatever their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, cast

import pyarrow as pa

from reki_ray.errors import DataError

_Open = Callable[[Path], IO[bytes]]


def _arrow(codec: str) -> _Open:
    return lambda path: cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), codec))


def _open_zip(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    names = [
        info.filename
        for info in archive.infolist()
        if not info.is_dir() and not info.filename.startswith("__MACOSX/")
    ]
    if "[Content_Types].xml" in names:
        raise _foreign(path, "an Excel workbook or another Office document")
    if len(names) != 1:
        raise DataError(
            f"the zip archive holds {len(names)} files",
            where=str(path),
            todo="Unpack it, and name the file of this table.",
        )
    return archive.open(names[0])


_CODECS: Final[dict[str, tuple[bytes, _Open]]] = {
    ".gz": (b"\x1f\x8b", cast(_Open, gzip.open)),
    ".bz2": (b"BZh", cast(_Open, bz2.open)),
    ".xz": (b"\xfd7zXZ\x00", cast(_Open, lzma.open)),
    ".zst": (b"\x28\xb5\x2f\xfd", _arrow("zstd")),
    ".lz4": (b"\x04\x22\x4d\x18", _arrow("lz4")),
    ".zip": (b"PK\x03\x04", _open_zip),
}
"""Suffix -> first bytes and opener."""

COMPRESSED: Final = tuple(_CODECS)
"""Suffixes of compressed files."""

_FOREIGN: Final = {
    b"PAR1": "a Parquet file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"ARROW1": "an Arrow IPC (Feather) file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "a SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook or another Office document",
    b"%PDF": "a PDF document",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"version https://git-lfs": "a pointer of Git LFS",
}
HEAD: Final = 32
"""Number of first bytes that identify a format."""


def open_text(path: Path, encoding: str) -> IO[str]:
    """Open a text file; its first bytes, else its name, decide on decompression.

    Undecodable bytes become surrogates, and line ends are kept.

    Raises:
        DataError: It is not a text file.
        OSError: It cannot be opened.
    """
    with path.open("rb") as start:
        head = start.read(HEAD)
    refuse_foreign(path, head)
    named = path.suffix.lower()
    codec = next((ext for ext, (magic, _) in _CODECS.items() if head.startswith(magic)), named)
    file = _CODECS[codec][1](path) if codec in _CODECS else path.open("rb")
    return io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")


def refuse_foreign(path: Path, head: bytes) -> None:
    """Reject a file whose first bytes are those of another format."""
    kind = next((kind for magic, kind in _FOREIGN.items() if head.startswith(magic)), None)
    if kind:
        raise _foreign(path, kind)


def _foreign(path: Path, kind: str) -> DataError:
    return DataError(
        f"the file is {kind}",
        where=str(path),
        todo="Fetch the file itself with `git lfs pull`."
        if "Git LFS" in kind
        else "Write it as CSV, or as Parquet with data.source.kind: parquet.",
    )
