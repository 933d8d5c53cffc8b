"""How text files are written, and what one looks like that does not fit its description."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from reki_ray.data.raw import BROKEN_QUOTES, WRONG_ENCODING, WRONG_FIELDS

_SEPARATORS: Final = (",", ";", "\t", "|", "::", ":", "\x01", "^", "~")
_QUOTES: Final = ('"', "'")
_SET: Final = "data.source.dialect"


@dataclass(frozen=True)
class TextFormat:
    """How a text file is laid out.

    Args:
        separator: Between fields; more than one character only without quote and escape.
        quote: What fields may stand in; None for fields that hold quotes as they are.
        escape: What takes its meaning from the character after it.
        encoding: Character encoding; bytes outside it put their row into quarantine.
        null_words: Cells that stand for no value.
        header: Names of the columns; None takes them from the first line.
    """

    separator: str = ","
    quote: str | None = '"'
    escape: str | None = None
    encoding: str = "utf-8-sig"
    null_words: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None

    @property
    def is_csv(self) -> bool:
        """Whether a field may hold the separator."""
        return self.quote is not None or self.escape is not None

    def reader(self, lines: Iterable[str], *, strict: bool = True) -> Iterator[list[str]]:
        """Records of CSV lines; with `strict`, `csv.Error` at those that break the rules."""
        return csv.reader(
            lines,
            delimiter=self.separator,
            quotechar=self.quote,
            quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            escapechar=self.escape,
            strict=strict,
        )

    def split(self, line: str) -> list[str]:
        """Fields of a line that is no CSV."""
        return line.rstrip("\r\n").split(self.separator)


def header_hint(
    line: str, header: Sequence[str], required: Sequence[str], layout: TextFormat
) -> str:
    """What to set where the header lacks columns.

    Args:
        line: The header as the file holds it.
        header: Its fields under `layout`.
        required: Columns that it should have.
        layout: The description that does not fit.

    Returns:
        A sentence; empty where nothing is found.
    """
    if "\0" in line:
        return encoding_hint(line)
    for quote in _QUOTES:
        for separator in _SEPARATORS:
            fields = [field.strip().strip(quote) for field in line.split(separator)]
            if set(required) <= set(fields):
                return _looks_like(layout, separator, quote if quote in line else layout.quote)
    counts = {separator: line.count(separator) for separator in _SEPARATORS}
    best = max(counts, key=lambda separator: counts[separator])
    if len(header) == 1 and counts[best]:
        return _looks_like(layout, best, layout.quote)
    return ""


def encoding_hint(line: str) -> str:
    """What to set where a line is not in its encoding.

    Args:
        line: Decoded as UTF-8, with surrogates for what is no UTF-8.
    """
    content = line.encode("utf-8", "surrogateescape")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"It looks like UTF-16: set {_SET}.encoding: utf-16."
    if b"\0" in content:
        order = "le" if content.index(b"\0") % 2 else "be"
        return f"It looks like UTF-16: set {_SET}.encoding: utf-16-{order}."
    return (
        f"If the file is in another encoding, set {_SET}.encoding, as latin-1, cp1252 or gb18030."
    )


def rejection_hint(reason: str, lines: Sequence[str], layout: TextFormat, width: int) -> str:
    """What to set where lines are no rows.

    Args:
        reason: Why they are none.
        lines: Some of them.
        layout: The description that does not fit.
        width: Number of columns.

    Returns:
        A sentence; empty where nothing is found.
    """
    if reason == WRONG_ENCODING:
        return encoding_hint("")
    if reason == BROKEN_QUOTES and any(f"\\{layout.quote}" in line for line in lines):
        return f"Quotes look escaped: set {_SET}.escape: {_yaml(chr(92))}."
    if reason == BROKEN_QUOTES:
        return f"If quotes are ordinary characters in this file, set {_SET}.quote: null."
    if reason == WRONG_FIELDS:
        for separator in _SEPARATORS:
            if all(len(line.split(separator)) == width for line in lines):
                return _looks_like(layout, separator, layout.quote)
    return ""


def number_hint(cells: Sequence[str], *, delimited: bool) -> str:
    """What to set where cells are no numbers; empty where nothing is found.

    Args:
        cells: Some of them.
        delimited: Whether they are of a text file, which may have words for no value.
    """
    if cells and all(re.fullmatch(r"[+-]?\d*,\d+", cell) for cell in cells):
        return f"{cells[0]!r} has a decimal comma: set {_SET}.decimal: ','."
    words = sorted(set(cells))
    if delimited and len(words) == 1 and re.fullmatch(r"[^\d\0-\x1f]{1,12}", words[0]):
        return f"If {words[0]!r} stands for no value, set {_SET}.null_words: [{_yaml(words[0])}]."
    return ""


def _looks_like(layout: TextFormat, separator: str, quote: str | None) -> str:
    found = []
    if separator != layout.separator:
        found.append(f"{_SET}.separator: {_yaml(separator)}")
    if quote != layout.quote or (len(separator) > 1 and quote):
        found.append(f"{_SET}.quote: {_yaml(quote if len(separator) == 1 else None)}")
    return f"The file looks like another dialect: set {' and '.join(found)}." if found else ""


def _yaml(value: str | None) -> str:
    """A value as a configuration writes it."""
    return json.dumps(value)
