"""`reki import-knowledge`: every entry of a file from elsewhere is checked, none vanishes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from reki_ray import schema
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.extraction.knowledge_files import Entry, read_entries
from reki_ray.extraction.knowledge_import import Row, write_imported
from reki_ray.prompts.quality import flaw_of
from reki_ray.prompts.reply_parser import LENGTH, clean, prompt_lines
from reki_ray.prompts.reply_text import encodable
from reki_ray.prompts.sanitize import sanitise
from reki_ray.prompts.template import MAX_REPLY_CHARS
from reki_ray.schema import CLUSTER_ID, ITEM_ID, USER_ID, SubjectKind, Table

Problem = Literal["unknown", "blank", "refusal", "loop", "malformed", "duplicate"]

_IDS: Final[dict[SubjectKind, tuple[Table, str]]] = {
    "item": (schema.ITEMS, ITEM_ID),
    "user": (schema.USERS, USER_ID),
    "item_cluster": (schema.CLUSTERS["items"], CLUSTER_ID),
    "user_cluster": (schema.CLUSTERS["users"], CLUSTER_ID),
}
_REVISION_DIGITS = 12
_EXAMPLES = 5
_ID_CHARS = 60


class ImportReport(BaseModel):
    """What became of a file's entries.

    Attributes:
        file: The file.
        source: Name under which its knowledge is kept.
        kind: Kind of its subjects.
        revision: First digits of the file's sha256.
        entries: Entries in the file; the sum of all counts below.
        imported: Entries that are knowledge from now on.
        unknown: Their id is in no table of the workspace.
        blank: Nothing is left of their text after cleaning, or it says that nothing is known.
        refusal: Their text declines to answer.
        loop: Their text repeats itself.
        malformed: They hold no text.
        duplicate: A later entry speaks of the same subject and factor.
        examples: Some ids of each problem.
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

    def note(self, problem: Problem, ids: Iterable[str]) -> None:
        """Keep some ids as examples of a problem."""
        kept = self.examples.get(problem, [])
        more = [sanitise(key, _ID_CHARS) for key in islice(ids, _EXAMPLES - len(kept))]
        if more:
            self.examples[problem] = kept + more


def import_knowledge(
    workspace: Workspace,
    file: Path,
    *,
    kind: SubjectKind | None = None,
    source: str | None = None,
    strict: bool = False,
) -> ImportReport:
    """Check a file of knowledge and keep what is valid; an earlier import of it is replaced.

    Args:
        workspace: Holds the tables of ingest and, for clusters, of cluster.
        file: JSON or Parquet, see `read_entries`.
        kind: Kind of the subjects; None finds out where the ids fit one kind alone.
        source: Name under which the knowledge is kept; None takes the file's name.
        strict: Refuse a file with unknown ids as a whole.

    Raises:
        ConfigError: The file cannot be read, the kind is unclear, or another run is at work.
        DataError: The file is damaged, holds nothing to import, or, where `strict`, unknown ids.
    """
    with workspace.lock():
        entries = read_entries(file)
        first = next(entries, [])
        known = _known_ids(workspace, kind) if kind else None
        if kind is None or known is None:
            kind, known = _find_kind(workspace, file, first)
        report = ImportReport(
            file=str(file),
            source=source or file.name,
            kind=kind,
            revision=_digest(file)[:_REVISION_DIGITS],
        )
        rows = _checked(chain([first], entries), known, report, strict=strict)
        report.imported, repeated = write_imported(
            workspace, kind, report.source, report.revision, rows
        )
        report.note("duplicate", (key for key, _, _ in repeated))
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
    """Valid rows of each batch; the report counts the others."""
    for batch in batches:
        report.entries += len(batch)
        texts = [entry for entry in batch if entry.text is not None]
        report.malformed += len(batch) - len(texts)
        report.note("malformed", (entry.id for entry in batch if entry.text is None))
        is_known = _is_known([entry.id for entry in texts], known)
        strangers = [e.id for e, found in zip(texts, is_known, strict=True) if not found]
        report.unknown += len(strangers)
        report.note("unknown", strangers)
        if strict and report.unknown:
            raise DataError(
                f"the file holds unknown ids: {', '.join(report.examples['unknown'])}",
                where=report.file,
                todo="Remove them, or import without --strict: they are then left out and counted.",
            )
        rows: list[Row] = []
        for entry, found in zip(texts, is_known, strict=True):
            if not found:
                continue
            text = _cleaned(entry)
            flaw = flaw_of(text or "", entry.factor)
            if text is not None and flaw is None:
                rows.append((entry.id, entry.factor, text))
                continue
            problem: Problem = (
                "refusal" if flaw == "refusal" else "loop" if flaw == "loop" else "blank"
            )
            setattr(report, problem, getattr(report, problem) + 1)
            report.note(problem, [entry.id])
        yield rows


def _cleaned(entry: Entry) -> str | None:
    """The text as `Frame.parse_reply` would keep it; None where nothing is left."""
    text, finish_reason = entry.text or "", None
    if len(text) > MAX_REPLY_CHARS:
        text, finish_reason = text[:MAX_REPLY_CHARS], LENGTH
    return clean(text, finish_reason, prompt_lines(entry.prompt)).text


def _is_known(ids: list[str], known: pa.ChunkedArray) -> list[bool]:
    """Whether each id is known. Only ids of the batch are hashed: `known` may be huge."""
    wanted = pa.array([key if encodable(key) == key else None for key in ids], pa.string())
    there = pc.unique(known.filter(pc.is_in(known, value_set=wanted)))
    if isinstance(there, pa.ChunkedArray):
        there = there.combine_chunks()
    found: list[bool] = pc.is_in(wanted, value_set=there).to_pylist()
    return found


def _known_ids(workspace: Workspace, kind: SubjectKind) -> pa.ChunkedArray:
    table, column = _IDS[kind]
    return workspace.read_table(table, columns=[column])[column]


def _find_kind(
    workspace: Workspace, file: Path, entries: list[Entry]
) -> tuple[SubjectKind, pa.ChunkedArray]:
    """The only kind that any of these entries is of, and its ids."""
    ids = [entry.id for entry in entries]
    fitting: list[tuple[SubjectKind, pa.ChunkedArray]] = []
    for kind, (table, _) in _IDS.items():
        if workspace.has_table(table):
            known = _known_ids(workspace, kind)
            if any(_is_known(ids, known)):
                fitting.append((kind, known))
    if len(fitting) == 1:
        return fitting[0]
    found = " and ".join(kind for kind, _ in fitting)
    raise ConfigError(
        f"the ids are those of {found}" if fitting else "no id of the file is known here",
        where=str(file),
        todo="Say what the entries are about: --kind item, user, item_cluster or user_cluster."
        if fitting
        else "Run `reki ingest` first, and give the ids of its tables.",
    )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
