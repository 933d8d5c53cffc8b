"""The layout of text files, and hints for files that do not fit it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from reki_ray.data.raw_tables import BROKEN_QUOTES, WRONG_ENCODING, WRONG_FIELDS

_SEPARATORS: Final = (",", ";", "\t", "|", "::", ":", "\x01", "^", "~", " ")
_QUOTES: Final = ('"', "'")
_SET: Final = "data.source.dialect"
_NO_TABLES: Final = {
    "JSON": re.compile(r"\s*(?:\{|\[\s*(?:[{\[]|$))"),
    "HTML or XML": re.compile(r"\s*<(?:!doctype|html|\?xml)", re.IGNORECASE),
}
_WIDE: Final = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_BYTE_ORDER_MARKS: Final = {
    "utf-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"),
    "utf-16": (b"\xff\xfe", b"\xfe\xff"),
}
_NUMBER: Final = re.compile(r"\s*[+-]?\d+(?:[.,]\d*)?\s*")
MOST_SKIPPED: Final = 20
"""Lines searched for a header."""


@dataclass(frozen=True)
class TextFormat:
    """Layout of a text file.

    Args:
        separator: Between fields; several characters only without quote and escape.
        quote: Encloses fields; None for fields that contain quotes literally.
        escape: Makes the next character literal.
        encoding: Character encoding; rows with other bytes are quarantined.
        null_words: Cells that count as missing.
        header: Names of the columns; None takes them from the first line.
        has_header: Whether there is such a line; else columns are named 1, 2, 3.
        skip_lines: Lines before it.
    """

    separator: str = ","
    quote: str | None = '"'
    escape: str | None = None
    encoding: str = "utf-8-sig"
    null_words: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None
    has_header: bool = True
    skip_lines: int = 0

    @property
    def is_csv(self) -> bool:
        """Whether a field may contain the separator."""
        return self.quote is not None or self.escape is not None

    def reader(self, lines: Iterable[str], *, strict: bool = True) -> Iterator[list[str]]:
        """Records of CSV lines; with `strict`, malformed ones raise `csv.Error`."""
        return csv.reader(
            lines,
            delimiter=self.separator,
            quotechar=self.quote,
            quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            escapechar=self.escape,
            strict=strict,
        )

    def split(self, line: str) -> list[str]:
        """Fields of a line without quoting."""
        return line.rstrip("\r\n").split(self.separator)


def header_hint(
    line: str,
    header: Sequence[str],
    required: Sequence[str],
    layout: TextFormat,
    following: Sequence[str] = (),
) -> str:
    """Suggest settings for a header line without required columns, or an empty string."""
    if "\0" in line:
        return encoding_hint(line)
    if kind := next((kind for kind, start in _NO_TABLES.items() if start.match(line)), ""):
        return f"It looks like {kind}: write it as CSV."
    for quote in _QUOTES:
        for separator in _SEPARATORS:
            fields = [field.strip().strip(quote) for field in line.split(separator)]
            if set(required) <= set(fields):
                return _looks_like(layout, separator, quote if quote in line else layout.quote)
    for number, later in enumerate(following, start=1):
        for separator in (layout.separator, *_SEPARATORS):
            fields = [field.strip().strip(layout.quote) for field in later.split(separator)]
            if set(required) <= set(fields):
                skip = f"{_SET}.skip_lines: {layout.skip_lines + number}"
                return _looks_like(layout, separator, layout.quote, skip)
    if not set(required) & set(header) and any(map(_NUMBER.fullmatch, header)):
        return (
            f"If there is no header, set {_SET}.header: false; the columns then are named '1' to "
            f"'{len(header)}'."
        )
    counts = {separator: line.count(separator) for separator in _SEPARATORS}
    best = max(counts, key=lambda separator: counts[separator])
    is_other = len(header) == 1 and counts[best]
    return _looks_like(layout, best, layout.quote) if is_other else ""


def encoding_hint(line: str) -> str:
    """Suggest an encoding for a line decoded as UTF-8 with surrogates."""
    content = line.encode("utf-8", "surrogateescape")
    for name, marks in _BYTE_ORDER_MARKS.items():
        if content.startswith(marks):
            return f"It looks like {name.upper()}: set {_SET}.encoding: {name}."
    if b"\0" in content:
        # Under the right one, at least the separators are ASCII.
        ascii_chars = {name: sum(map(str.isascii, _wide_text(content, name))) for name in _WIDE}
        best = max(ascii_chars, key=lambda name: ascii_chars[name])
        if not ascii_chars[best]:
            return "It looks like a binary file: write it as CSV, or as Parquet."
        return f"It looks like {best[:6].upper()}: set {_SET}.encoding: {best}."
    return (
        f"If the file is in another encoding, set {_SET}.encoding, as latin-1, cp1252 or gb18030."
    )


def rejection_hint(reason: str, lines: Sequence[str], layout: TextFormat, width: int) -> str:
    """Suggest settings for sample lines rejected for a reason, or an empty string."""
    if reason == WRONG_ENCODING:
        return encoding_hint("")
    if reason == BROKEN_QUOTES and any(f"\\{layout.quote}" in line for line in lines):
        return f"Quotes look escaped: set {_SET}.escape: {json.dumps(chr(92))}."
    if reason == BROKEN_QUOTES:
        return f"If quotes are ordinary characters in this file, set {_SET}.quote: null."
    if reason == WRONG_FIELDS:
        for separator in _SEPARATORS:
            if all(len(line.split(separator)) == width for line in lines):
                return _looks_like(layout, separator, layout.quote)
    return ""


def number_hint(cells: Sequence[str], *, delimited: bool) -> str:
    """Suggest settings for sample cells that are not numbers, or an empty string.

    Text files (`delimited`) may have words for missing values.
    """
    if cells and all(re.fullmatch(r"[+-]?\d*,\d+", cell) for cell in cells):
        return f"{cells[0]!r} has a decimal comma: set {_SET}.decimal: ','."
    words = sorted(set(cells))
    if delimited and len(words) == 1 and re.fullmatch(r"[^\d\0-\x1f]{1,12}", words[0]):
        return (
            f"If {words[0]!r} stands for no value, set {_SET}.null_words: [{json.dumps(words[0])}]."
        )
    return ""


def _wide_text(content: bytes, encoding: str) -> str:
    """Text of a line in a multi-byte encoding without its end, or an empty string."""
    unit = 4 if "32" in encoding else 2
    try:
        text = content[: len(content) // unit * unit].decode(encoding)
    except UnicodeDecodeError:
        return ""
    text = text.rstrip("\r\n")
    return text if text.replace("\t", "").replace("\x01", "").isprintable() else ""


def _looks_like(layout: TextFormat, separator: str, quote: str | None, skip: str = "") -> str:
    settings = [skip] if skip else []
    if separator != layout.separator:
        settings.append(f"{_SET}.separator: {json.dumps(separator)}")
    if quote != layout.quote or (len(separator) > 1 and quote):
        settings.append(f"{_SET}.quote: {json.dumps(quote if len(separator) == 1 else None)}")
    return f"The file looks like another dialect: set {' and '.join(settings)}." if settings else ""
