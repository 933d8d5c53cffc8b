"""Disk space of a run's knowledge, measured on a sample where it depends on texts."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, computed_field

from reki_ray.config import RekiConfig
from reki_ray.core.downloads import PACKAGED, resolve_model
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.extraction.answer_cache import LEDGER, PromptKeys
from reki_ray.extraction.plan_table import PLAN
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import (
    BODY,
    CACHED_TOKENS,
    CREATED_AT,
    ENGINE,
    FACTOR,
    FINISH_REASON,
    GENERATED_TOKENS,
    KNOWLEDGE,
    MODEL,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REVISION,
    SHOWN,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    TEXTS,
    WHOLE_ANSWER,
    SubjectKind,
    Table,
)

_FLOAT32 = 4
_MEAN_ID = 10
_ROWS = 1000
_CHARS_A_TOKEN = 4
_DIMENSION = 768
_PUBLISHED_ROW = 8 + 4 + 1 + 4 + 10 + 4
"""Key hash, and factor and source as Arrow writes them, with the ends of three texts."""


class Storage(BaseModel):
    """Disk space, bytes.

    Attributes:
        plan: Rendered prompts.
        ledger: Every answer, under its address.
        knowledge: The answers, subject by subject.
        representations: Encoded knowledge and encoded source texts of all ids.
        published: Augmented vectors of one version.
    """

    plan: int
    ledger: int
    knowledge: int
    representations: int
    published: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """All together."""
        return self.plan + self.ledger + self.knowledge + self.representations + self.published


class RowSizes:
    """Bytes a row of the tables that hold texts, from a sample written as Parquet.

    Args:
        config: The run.
        template: Factors and form.
        assumptions: Gets a sentence for everything that is assumed.
    """

    def __init__(
        self, config: RekiConfig, template: PromptTemplate, assumptions: list[str]
    ) -> None:
        engine = config.extract.engine
        self._constant = {
            MODEL: engine.model,
            REVISION: engine.revision,
            ENGINE: engine.kind,
            PROMPT_TOKENS: 700,
            CACHED_TOKENS: 600,
            GENERATED_TOKENS: 100,
            FINISH_REASON: "stop",
            CREATED_AT: 1_700_000_000,
        }
        self._factors = template.factors if template.form == "json" else (WHOLE_ANSWER,)
        self._addresses = PromptKeys(
            template, engine.model, engine.revision, config.extract.sampling
        )
        assumptions.append(
            "The size of the tables is measured on sampled prompts; answers are stood in for by "
            "words of these prompts, 4 characters a generated token."
        )

    def of(
        self, kind: SubjectKind, bodies: Sequence[str], generated_tokens: float
    ) -> dict[str, float]:
        """Bytes a row of plan and ledger, and bytes a subject of knowledge, by path of the table.

        Args:
            kind: Kind of the subjects.
            bodies: At least one sampled body.
            generated_tokens: Tokens an answer.
        """
        chance = random.Random(0)
        words = _Words(bodies, chance)
        length = max(8, round(generated_tokens * _CHARS_A_TOKEN / len(self._factors)))
        rows: list[dict[str, object]] = []
        answers: list[dict[str, object]] = []
        for number in range(_ROWS):
            body = bodies[number % len(bodies)]
            if number >= len(bodies):  # the same body again would take no space at all
                body = words.text(len(body))
            row = {
                **self._constant,
                SUBJECT_KIND: kind,
                SUBJECT_ID: f"{chance.getrandbits(32):0{_MEAN_ID}d}",
                BODY: body,
                SHOWN: [],
                PROMPT_HASH: self._addresses.of(kind, f"{body} {number}"),
            }
            texts = {factor: words.text(length) for factor in self._factors}
            rows.append({**row, TEXTS: list(texts.items())})
            answers += [{**row, FACTOR: factor, TEXT: text} for factor, text in texts.items()]
        return {
            PLAN.path: _bytes(PLAN, rows) / _ROWS,
            LEDGER.path: _bytes(LEDGER, rows) / _ROWS,
            KNOWLEDGE.path: _bytes(KNOWLEDGE, answers) / _ROWS,
        }


def vector_bytes(config: RekiConfig, ids: int, dimension: int) -> tuple[int, int]:
    """Bytes of representations and of published vectors.

    Args:
        config: The run.
        ids: Users and items together.
        dimension: Length of a representation.
    """
    # Two tables a side: encoded knowledge, and encoded source text.
    representations = 2 * ids * (dimension * _FLOAT32 + _MEAN_ID)
    published = ids * (config.train.hein.output * _FLOAT32 + _MEAN_ID + _PUBLISHED_ROW)
    return representations, published


def encoder_dimension(
    config: RekiConfig, workspace: Workspace | None, assumptions: list[str]
) -> int:
    """Length of a representation, as far as it can be known without loading the encoder."""
    stages: Mapping[str, object] = {} if workspace is None else workspace.stages()
    details = getattr(stages.get("encode"), "details", {})
    if details.get("model") == config.encode.model and "dimension" in details:
        return int(details["dimension"])
    try:
        packaged = config.encode.model.startswith(PACKAGED)
        folder = Path(resolve_model(config.encode.model) if packaged else config.encode.model)
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(description["hidden_size"])
    except (OSError, ValueError, KeyError, EngineError):
        assumptions.append(
            f"A representation of {config.encode.model} is taken to have {_DIMENSION} numbers."
        )
        return _DIMENSION


class _Words:
    """Text without meaning, of the words of some texts."""

    def __init__(self, texts: Sequence[str], chance: random.Random) -> None:
        self._words = " ".join(texts).split()
        self._length = sum(map(len, self._words)) / len(self._words) + 1
        self._chance = chance

    def text(self, chars: int) -> str:
        return " ".join(self._chance.choices(self._words, k=1 + int(chars / self._length)))[:chars]


def _bytes(table: Table, rows: list[dict[str, object]]) -> int:
    assert table.schema is not None  # all tables that are measured have a fixed schema
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
    return sink.tell()
