"""Errors that a user can act on.

Every message says what went wrong, where, and what to do. The command line prints
the message alone and leaves with the error's exit code. It sorts other exceptions into
these kinds (`cli_failures.explain`); what fits none is a fault of reki-ray, exit code 1.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of what a terminal obeys, hides or cannot print."""


def printable(text: str) -> str:
    """Text that is safe to print: whatever a terminal obeys or hides is written as an escape.

    Line feeds stay.
    """
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _HIDDEN else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class RekiError(Exception):
    """Base of all errors that the user can act on.

    Args:
        what: What went wrong, in one sentence.
        where: File, row, key, stage or address at which it went wrong.
        todo: What the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str, todo: str) -> None:
        # Messages quote headers, cells and paths, which hold anything.
        self.what, self.where, self.todo = printable(what), printable(where), printable(todo)
        super().__init__(f"{self.what} [{self.where}] {self.todo}")

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling between Ray processes.
        return _rebuild, (type(self), self.what, self.where, self.todo)


def _rebuild(kind: type[RekiError], what: str, where: str, todo: str) -> RekiError:
    return kind(what, where=where, todo=todo)


class ConfigError(RekiError):
    """Wrong use or configuration."""

    exit_code = 2


class DataError(RekiError):
    """Bad data beyond the configured threshold, or a table that breaks its schema."""

    exit_code = 3


class EngineError(RekiError):
    """An LLM engine, an encoder or the Ray cluster is unavailable."""

    exit_code = 4


class StoreError(RekiError):
    """A version of the vector store is missing, damaged or does not fit the model."""

    exit_code = 3


class NotFiniteError(StoreError):
    """Weights, vectors or scores are no finite numbers."""
