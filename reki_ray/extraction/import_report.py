"""`reki import-knowledge`: reads a file of knowledge, checks every entry, and counts all of them.

Formats: JSON `{id: text}`, JSON `{id: {"prompt": ..., "answer": ...}}`, as KAR and the first code
of REKI write it, and Parquet with the columns `id`, `text` and, optionally, `factor`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from reki_ray import schema
from reki_ray.core.workspace import Workspace
from reki_ray.data.remote_files import local_copy
from reki_ray.errors import ConfigError, DataError
from reki_ray.extraction.knowledge_import import Row, write_imported
from reki_ray.prompts.quality import flaw_of
from reki_ray.prompts.reply_parser import clean, prompt_lines
from reki_ray.prompts.reply_text import encodable
from reki_ray.prompts.sanitize import sanitise
from reki_ray.prompts.template import MAX_REPLY_CHARS
from reki_ray.schema import SubjectKind, Table

Problem = Literal["unknown", "blank", "refusal", "loop", "malformed", "duplicate"]

_IDS: Final[dict[SubjectKind, tuple[Table, str]]] = {
    "item": (schema.ITEMS, schema.ITEM_ID),
    "user": (schema.USERS, schema.USER_ID),
    "item_cluster": (schema.CLUSTERS["items"], schema.CLUSTER_ID),
    "user_cluster": (schema.CLUSTERS["users"], schema.CLUSTER_ID),
}
BATCH_ROWS: Final = 65_536
"""Entries read at a time."""

_PARQUET = b"PAR1"
_PROMPT, _ANSWER = "prompt", "answer"
_REVISION_DIGITS = 12
_EXAMPLES = 5
_ID_CHARS = 60


class Entry(NamedTuple):
    """One entry of a file."""

    id: str
    factor: str
    text: str | None
    prompt: str


class ImportReport(BaseModel):
    """Counts of a file's entries.

    Attributes:
        revision: First digits of the file's sha256.
        entries: Entries in the file; the sum of all counts below.
        imported: Entries kept as knowledge.
        unknown: Their id is in no table of the workspace.
        blank: Their text is empty after cleaning, or says that nothing is known.
        refusal: Their text declines to answer.
        loop: Their text repeats itself.
        malformed: They hold no text.
        duplicate: A later entry has the same subject and factor.
    """

    file: str
    source: str
    kind: SubjectKind
    revision: str
    entries: int = 0
    imported: int = 0
    unknown: int = 0
    blank: int = 0
    refusal: int = 0
    loop: int = 0
    malformed: int = 0
    duplicate: int = 0
    examples: dict[Problem, list[str]] = {}

    def count(self, problem: Problem, key: str) -> None:
        """Count an entry with a problem; the first ids are examples of it."""
        setattr(self, problem, getattr(self, problem) + 1)
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _EXAMPLES:
            examples.append(sanitise(key, _ID_CHARS))


def import_knowledge(
    workspace: Workspace,
    file: Path | str,
    *,
    kind: SubjectKind | None = None,
    source: str | None = None,
    strict: bool = False,
) -> ImportReport:
    """Check a file of knowledge and keep what is valid; an earlier import of it is replaced.

    Args:
        file: Path, or a URI as of data sources.
        kind: Kind of the subjects; None infers it if the ids fit exactly one kind.
        source: Name of the knowledge's source; None takes the file's name.
        strict: Refuse the whole file if it holds unknown ids.

    Raises:
        ConfigError: The file cannot be read, the kind is ambiguous, or another run has the lock.
        DataError: The file is damaged, holds nothing to import or, with `strict`, unknown ids.
    """
    named, file = str(file), local_copy(str(file))
    with workspace.lock():
        entries = read_entries(file)
        first = next(entries, [])
        if kind is None:
            kind, known = _find_kind(workspace, file, first)
        else:
            known = _known_ids(workspace, kind)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        report = ImportReport(
            file=named,
            source=source or file.name,
            kind=kind,
            revision=digest[:_REVISION_DIGITS],
        )
        rows = _checked(chain([first], entries), known, report, strict=strict)
        report.imported, repeated = write_imported(
            workspace, kind, report.source, report.revision, rows
        )
        for key in repeated:
            report.count("duplicate", key)
        wrong = report.unknown + report.blank + report.refusal + report.loop + report.malformed
        report.duplicate = report.entries - report.imported - wrong
    if not report.imported:
        raise DataError(
            f"none of {report.entries} entries can be imported: {report.unknown} unknown ids, "
            f"{report.blank} blank, {report.refusal} refusals, {report.loop} loops, "
            f"{report.malformed} without a text",
            where=str(file),
            todo=f"The ids must be those of the {kind} table, and each needs a text.",
        )
    return report


def _checked(
    batches: Iterable[list[Entry]], known: pa.ChunkedArray, report: ImportReport, *, strict: bool
) -> Iterator[list[Row]]:
    """Valid rows of each batch; the others are counted in the report."""
    for batch in batches:
        report.entries += len(batch)
        is_known = _is_known([entry.id for entry in batch], known)
        rows: list[Row] = []
        for entry, ok in zip(batch, is_known, strict=True):
            text = _cleaned(entry) if ok and entry.text is not None else None
            flaw = flaw_of(text or "", entry.factor)
            if entry.text is None:
                report.count("malformed", entry.id)
            elif not ok:
                report.count("unknown", entry.id)
            elif text is None or flaw is not None:
                report.count(flaw if flaw in ("refusal", "loop") else "blank", entry.id)
            else:
                rows.append((entry.id, entry.factor, text))
        if strict and report.unknown:
            raise DataError(
                f"the file holds unknown ids: {', '.join(report.examples['unknown'])}",
                where=report.file,
                todo="Remove them, or import without --strict, which skips and counts them.",
            )
        yield rows


def _cleaned(entry: Entry) -> str | None:
    """The text as `PromptTemplate.parse_reply` keeps it; None if nothing is left."""
    text = entry.text or ""
    cut = len(text) > MAX_REPLY_CHARS
    return clean(text[:MAX_REPLY_CHARS], prompt_lines(entry.prompt), cut=cut)


def _is_known(ids: list[str], known: pa.ChunkedArray) -> list[bool]:
    """Whether each id is known; only ids of the batch are hashed, since `known` may be huge."""
    wanted = pa.array([key if encodable(key) == key else None for key in ids], pa.string())
    present = pc.unique(known.filter(pc.is_in(known, value_set=wanted)))
    mask: list[bool] = pc.is_in(wanted, value_set=present).to_pylist()
    return mask


def _known_ids(workspace: Workspace, kind: SubjectKind) -> pa.ChunkedArray:
    table, column = _IDS[kind]
    return workspace.read_table(table, columns=[column])[column]


def _find_kind(
    workspace: Workspace, file: Path, entries: list[Entry]
) -> tuple[SubjectKind, pa.ChunkedArray]:
    """The only kind that any of these ids belongs to, and all ids of that kind."""
    ids = [entry.id for entry in entries]
    fitting: list[tuple[SubjectKind, pa.ChunkedArray]] = []
    for kind, (table, _) in _IDS.items():
        if workspace.has_table(table):
            known = _known_ids(workspace, kind)
            if any(_is_known(ids, known)):
                fitting.append((kind, known))
    if len(fitting) == 1:
        return fitting[0]
    kinds = " and ".join(kind for kind, _ in fitting)
    raise ConfigError(
        f"the ids are those of {kinds}" if fitting else "no id of the file is in the workspace",
        where=str(file),
        todo="Name the kind of the entries: --kind item, user, item_cluster or user_cluster."
        if fitting
        else "Run `reki ingest` first, and use the ids of its tables.",
    )


# --- files ---------------------------------------------------------------------------------------
def read_entries(file: Path) -> Iterator[list[Entry]]:
    """Entries of a file, `BATCH_ROWS` at a time, in the order of the file.

    Parquet is read batch by batch; a JSON file is read whole, about four times its size.

    Raises:
        ConfigError: The file cannot be read.
        DataError: The file is damaged or in an unknown format.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_PARQUET))
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
        missing = [name for name in (schema.ID, schema.TEXT) if name not in names]
        if missing:
            raise _broken(file, f"columns are missing: {', '.join(missing)}")
        columns = [name for name in (schema.ID, schema.TEXT, schema.FACTOR) if name in names]
        _require_kinds(file, opened.schema_arrow, columns)
        for batch in opened.iter_batches(BATCH_ROWS, columns=columns):
            rows = pa.table({name: batch[name].cast(pa.string()) for name in columns}).to_pylist()
            yield [
                Entry(
                    row[schema.ID] or "",
                    (row.get(schema.FACTOR) or "").strip() or schema.WHOLE_ANSWER,
                    row[schema.TEXT],
                    "",
                )
                for row in rows
            ]


def _require_kinds(file: Path, fields: pa.Schema, columns: list[str]) -> None:
    for name in columns:
        kind = fields.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        # Many data sets have numeric ids; ingest turns them into the same strings.
        if not (text or (name == schema.ID and pa.types.is_integer(kind))):
            raise _broken(file, f"column {name} holds {kind}, not text")


def _json(file: Path) -> Iterator[list[Entry]]:
    try:
        # Pairs instead of dictionaries keep duplicate keys.
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"the file is not valid JSON: {error}") from error
    if not isinstance(content, tuple):
        raise _broken(file, "the file is not a JSON object with ids as keys")
    for start in range(0, len(content), BATCH_ROWS):
        yield [_entry(key, value) for key, value in content[start : start + BATCH_ROWS]]


def _entry(key: str, value: Any) -> Entry:
    prompt: Any = ""
    if isinstance(value, tuple):
        fields = dict(value)
        value, prompt = fields.get(_ANSWER), fields.get(_PROMPT)
    text = value if isinstance(value, str) else None
    return Entry(key, schema.WHOLE_ANSWER, text, prompt if isinstance(prompt, str) else "")


def _broken(file: Path, what: str) -> DataError:
    return DataError(
        what,
        where=str(file),
        todo='Give JSON {id: text}, JSON {id: {"prompt": ..., "answer": ...}}, or Parquet with the '
        "text columns id, text and, optionally, factor.",
    )
