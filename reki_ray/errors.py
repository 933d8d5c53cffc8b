"""Errors that a user can act on.

Every message says what went wrong, where, and what to do. The command line prints the message
and exits with the error's code. It maps other exceptions to these kinds (`cli.failures.explain`);
the rest are faults of reki-ray, exit code 1.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that terminals interpret, hide or cannot print."""


def printable(text: str) -> str:
    """Escape control and hidden characters, except for line feeds."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _HIDDEN else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class RekiError(Exception):
    """Base of all errors that a user can act on.

    Args:
        what: What went wrong, in one sentence.
        where: File, row, key, stage or address.
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
    """Weights, vectors or scores are not finite."""
