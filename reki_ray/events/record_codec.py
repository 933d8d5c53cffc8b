"""A record as one line that tells whether it is whole.

`<CRC-32 of the rest, 8 hexadecimal digits> <JSON object>` and a line feed. JSON escapes a line
feed, so that none is inside a record; other characters are as they are, in UTF-8.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from reki_ray.errors import DataError

MAX_LINE_BYTES: Final = 2**21
"""Longest line that is written; what is longer in a file is damage."""

_CHECK_CHARS: Final = 8


def encode_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line.

    Raises:
        DataError: It holds something that JSON cannot, or is too long.
    """
    try:
        text = json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        body = text.encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the record cannot be kept: {error}",
            where=f"fields {', '.join(record)}",
            todo="Send text, finite numbers and lists of them.",
        ) from error
    line = b"%08x %b\n" % (zlib.crc32(body), body)
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"the record takes {len(line)} bytes, more than {MAX_LINE_BYTES}",
            where=f"fields {', '.join(record)}",
            todo="Shorten its ids or lists.",
        )
    return line


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its line feed; None where the line is damaged."""
    check, blank, body = line.partition(b" ")
    if not blank or len(check) != _CHECK_CHARS or check != b"%08x" % zlib.crc32(body):
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):  # nested deeper than any record
        return None
    return record if isinstance(record, dict) else None
