"""Files of knowledge from elsewhere: JSON and Parquet, read entry by entry.

JSON `{id: text}`, JSON `{id: {"prompt": ..., "answer": ...}}`, as KAR and the first code of REKI
write it, and Parquet with the columns `id`, `text` and, optionally, `factor`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray.errors import ConfigError, DataError
from reki_ray.schema import FACTOR, ID, TEXT, WHOLE_ANSWER

BATCH_ROWS: Final = 65_536
"""Entries read at a time."""

_PARQUET = b"PAR1"
_PROMPT, _ANSWER = "prompt", "answer"


class Entry(NamedTuple):
    """One piece of knowledge as the file has it.

    Attributes:
        id: Id of the subject.
        factor: Factor, "*" for a whole answer.
        text: The knowledge; None where the file has something else in its place.
        prompt: What was asked; empty where the file does not tell.
    """

    id: str
    factor: str
    text: str | None
    prompt: str


def read_entries(file: Path) -> Iterator[list[Entry]]:
    """Entries of a file, `BATCH_ROWS` at a time, in the order of the file.

    Parquet is read batch by batch; a JSON file is read whole, about four times its size.

    Args:
        file: A file in one of the formats above; what it holds counts, not its name.

    Raises:
        ConfigError: The file cannot be read.
        DataError: The file is damaged, or in none of the formats.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_PARQUET))
        if start == _PARQUET:
            yield from _parquet(file)
        else:
            yield from _json(file)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ConfigError(
                f"cannot read the file: {error}",
                where=str(file),
                todo="Name a readable JSON or Parquet file.",
            ) from error
        raise _broken(file, f"the file is damaged: {error}") from error


def _parquet(file: Path) -> Iterator[list[Entry]]:
    with pq.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        missing = [name for name in (ID, TEXT) if name not in names]
        if missing:
            raise _broken(file, f"columns are missing: {', '.join(missing)}")
        columns = [name for name in (ID, TEXT, FACTOR) if name in names]
        _require_kinds(file, opened.schema_arrow, columns)
        for batch in opened.iter_batches(BATCH_ROWS, columns=columns):
            ids, texts = (batch[name].cast(pa.string()).to_pylist() for name in (ID, TEXT))
            factors = (
                batch[FACTOR].cast(pa.string()).to_pylist()
                if FACTOR in columns
                else [WHOLE_ANSWER] * len(ids)
            )
            yield [
                Entry(key or "", (factor or "").strip() or WHOLE_ANSWER, text, "")
                for key, text, factor in zip(ids, texts, factors, strict=True)
            ]


def _require_kinds(file: Path, fields: pa.Schema, columns: list[str]) -> None:
    for name in columns:
        kind = fields.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        # Numbers serve as ids in many data sets; ingest makes the same strings of them.
        if not (text or (name == ID and pa.types.is_integer(kind))):
            raise _broken(file, f"column {name} holds {kind}, not text")


def _json(file: Path) -> Iterator[list[Entry]]:
    try:
        # Pairs instead of dictionaries: what is named twice is seen twice.
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"the file is no valid JSON: {error}") from error
    if not isinstance(content, tuple):
        raise _broken(file, "the file is no JSON object with ids as keys")
    for start in range(0, len(content), BATCH_ROWS):
        yield [_entry(key, value) for key, value in content[start : start + BATCH_ROWS]]


def _entry(key: str, value: Any) -> Entry:
    prompt: Any = ""
    if isinstance(value, tuple):
        fields = dict(value)
        value, prompt = fields.get(_ANSWER), fields.get(_PROMPT)
    text = value if isinstance(value, str) else None
    return Entry(key, WHOLE_ANSWER, text, prompt if isinstance(prompt, str) else "")


def _broken(file: Path, what: str) -> DataError:
    return DataError(
        what,
        where=str(file),
        todo='Give JSON {id: text}, JSON {id: {"prompt": ..., "answer": ...}}, or Parquet with the '
        "text columns id, text and, if you like, factor.",
    )
