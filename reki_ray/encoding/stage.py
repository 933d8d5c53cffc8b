"""Stage encode: knowledge and source texts to representations r, one row for every id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.encoding.pool import encode_texts
from reki_ray.encoding.texts import item_texts, user_texts
from reki_ray.errors import DataError
from reki_ray.extraction.ledger import Ledger
from reki_ray.histories import before_cut
from reki_ray.pipeline import StageResult
from reki_ray.progress import Reporter
from reki_ray.runtime import ray_session
from reki_ray.schema import (
    CLUSTER_ID,
    FACTOR,
    ID,
    ITEM_ID,
    SIDES,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    USER_ID,
    WHOLE_ANSWER,
    Side,
    Source,
    SubjectKind,
)
from reki_ray.vectors import normalise, vectors_table
from reki_ray.workspace import Workspace

_OWN: Final[dict[Side, SubjectKind]] = {"users": "user", "items": "item"}
_SHARED: Final[dict[Side, SubjectKind]] = {"users": "user_cluster", "items": "item_cluster"}

Subject = tuple[str, str]
"""Kind and id of what an answer is about."""


class Knowledge(NamedTuple):
    """Where the knowledge of each id of one side comes from.

    Attributes:
        subjects: The subject whose answer stands for the id, None where there is no answer.
        sources: How near that answer is to the id.
    """

    subjects: list[Subject | None]
    sources: list[Source]


class Inputs(NamedTuple):
    """What there is to encode.

    Attributes:
        ids: All ids of a side, in the order of its tables.
        texts: Source text of each id.
        knowledge: Where the knowledge of each id comes from.
        answers: Text of every answered subject.
    """

    ids: dict[Side, list[str]]
    texts: dict[Side, list[str]]
    knowledge: dict[Side, Knowledge]
    answers: dict[Subject, str]

    @property
    def needed(self) -> list[Subject]:
        """Subjects whose answer stands for at least one id, sorted."""
        found = {s for side in SIDES for s in self.knowledge[side].subjects if s is not None}
        return sorted(found)


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Write `REPRESENTATIONS` and `TEXT_REPRESENTATIONS` of both sides."""
    inputs = _read(config, workspace)
    needed = inputs.needed
    # One pass for all texts: starting an encoder costs more than encoding some hundred texts.
    texts = {f"{kind}/{key}": inputs.answers[kind, key] for kind, key in needed}
    for side in SIDES:
        keys = (f"{side}/{key}" for key in inputs.ids[side])
        texts.update(zip(keys, inputs.texts[side], strict=True))
    with ray_session(config.ray):
        vectors = encode_texts(
            list(texts), list(texts.values()), config.encode, reporter, "encode: encoding texts"
        )
    _write(workspace, inputs, vectors)
    total = sum(len(inputs.ids[side]) for side in SIDES)
    return StageResult(
        rows_in=total,
        rows_out=total,
        details={
            "model": config.encode.model,
            "revision": config.encode.revision,
            "dimension": int(vectors.shape[1]),
            "texts_encoded": len(set(texts.values())),
            "sources": {side: dict(Counter(inputs.knowledge[side].sources)) for side in SIDES},
        },
    )


def _read(config: RekiConfig, workspace: Workspace) -> Inputs:
    users, items = workspace.read_table(schema.USERS), workspace.read_table(schema.ITEMS)
    visible = before_cut(
        workspace.read_table(schema.INTERACTIONS), workspace.read_table(schema.CUTS)
    )
    ids: dict[Side, list[str]] = {
        "users": users[USER_ID].to_pylist(),
        "items": items[ITEM_ID].to_pylist(),
    }
    texts: dict[Side, list[str]] = {
        "users": user_texts(users, visible, items, config.prompts),
        "items": item_texts(items, config.prompts),
    }
    answers = answer_texts(Ledger(workspace).current_answers())
    knowledge = {
        side: find_knowledge(side, ids[side], _clusters(workspace, side), answers) for side in SIDES
    }
    for side in SIDES:
        _require_some(side, knowledge[side], workspace)
    return Inputs(ids, texts, knowledge, answers)


def _write(workspace: Workspace, inputs: Inputs, vectors: np.ndarray) -> None:
    """Write all tables; rows of `vectors`: answers as in `inputs.needed`, then side by side."""
    row_of = {subject: row for row, subject in enumerate(inputs.needed)}
    start = len(row_of)
    with workspace.replacing("encode") as scratch:
        for side in SIDES:
            ids, knowledge = inputs.ids[side], inputs.knowledge[side]
            known = spread(knowledge.subjects, row_of, vectors)
            table = vectors_table(ids, known, knowledge.sources)
            scratch.write_table(schema.REPRESENTATIONS[side], table)
            own: list[Source] = ["individual"] * len(ids)
            table = vectors_table(ids, vectors[start : start + len(ids)], own)
            scratch.write_table(schema.TEXT_REPRESENTATIONS[side], table)
            start += len(ids)


def answer_texts(answers: pa.Table) -> dict[Subject, str]:
    """Text of every subject that has a non-blank answer.

    Args:
        answers: Rows of `KNOWLEDGE_SCHEMA`. Where a subject has a whole answer it counts,
            otherwise its factors, each on a line, in the order of their names.
    """
    parts: dict[Subject, dict[str, str]] = {}
    columns = (answers[name].to_pylist() for name in (SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT))
    for kind, subject, factor, text in zip(*columns, strict=True):
        if text.strip():
            parts.setdefault((kind, subject), {})[factor] = text
    return {
        subject: factors.get(WHOLE_ANSWER) or "\n".join(factors[name] for name in sorted(factors))
        for subject, factors in parts.items()
    }


def find_knowledge(
    side: Side,
    ids: Sequence[str],
    cluster_of: Mapping[str, str],
    answers: Mapping[Subject, str],
) -> Knowledge:
    """Nearest answer for each id: its own, its cluster's, or none.

    Args:
        side: Users or items.
        ids: N ids.
        cluster_of: Cluster of each id.
        answers: Text of every answered subject.
    """
    subjects: list[Subject | None] = []
    sources: list[Source] = []
    for key in ids:
        own, shared = (_OWN[side], key), (_SHARED[side], cluster_of.get(key, ""))
        if own in answers:
            subjects.append(own)
            sources.append("individual")
        elif shared in answers:
            subjects.append(shared)
            sources.append("cluster")
        else:
            subjects.append(None)
            sources.append("fallback")
    return Knowledge(subjects, sources)


def spread(
    subjects: Sequence[Subject | None], row_of: Mapping[Subject, int], vectors: np.ndarray
) -> np.ndarray:
    """Vector of each id; ids without an answer get the mean direction of the others.

    Args:
        subjects: N subjects, at least one of them not None.
        row_of: Row of each subject in `vectors`.
        vectors: (S, d), rows of unit length.

    Returns:
        (N, d) float32, rows of unit length.
    """
    found = np.array([-1 if subject is None else row_of[subject] for subject in subjects])
    spread_out: np.ndarray = vectors[found]  # (N, d); rows of -1 are overwritten below
    missing = found < 0
    if missing.any():
        mean = spread_out[~missing].mean(axis=0, dtype=np.float64, keepdims=True)
        spread_out[missing] = normalise(mean)
    return spread_out


def _clusters(workspace: Workspace, side: Side) -> dict[str, str]:
    rows = workspace.read_table(schema.CLUSTERS[side], columns=[ID, CLUSTER_ID])
    return dict(zip(rows[ID].to_pylist(), rows[CLUSTER_ID].to_pylist(), strict=True))


def _require_some(side: Side, knowledge: Knowledge, workspace: Workspace) -> None:
    if all(subject is None for subject in knowledge.subjects):
        raise DataError(
            f"there is no knowledge about any of the {len(knowledge.subjects)} {side}",
            where=workspace.path(schema.KNOWLEDGE.path),
            todo="Read the reasons in extract/dead, correct the engine, run `reki extract` again.",
        )
