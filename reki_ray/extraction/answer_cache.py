"""Every answer of an LLM, addressed by its prompt.

The address of a prompt covers all that determines its answer: another sampling asks again,
another batch size, order or concurrency does not.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.config import ExtractConfig
from reki_ray.core.content_store import ContentIndex, ContentStore, hash_strings, parse_digests
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.extraction.model_identity import request_identity
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import SubjectKind, Table

PASS: Final = "pass"

_STRING: Final = pa.string()
_required = partial(pa.field, nullable=False)

LEDGER: Final = Table(
    "extract/ledger",
    pa.schema(
        [
            _required(schema.PROMPT_HASH, _STRING),
            # Factor to text, "*" for a whole answer.
            _required(schema.TEXTS, pa.map_(_STRING, _STRING)),
            _required(schema.MODEL, _STRING),
            _required(schema.REVISION, _STRING),
            _required(schema.ENGINE, _STRING),
            _required(schema.PROMPT_TOKENS, pa.int32()),
            _required(schema.CACHED_TOKENS, pa.int32()),
            _required(schema.GENERATED_TOKENS, pa.int32()),
            pa.field(schema.FINISH_REASON, _STRING),
            # Factors that stay empty, each with its problem, and why the prompt was retried, empty
            # if it was not; null in files of earlier releases.
            pa.field(schema.FLAWS, pa.map_(_STRING, _STRING)),
            pa.field(schema.RETRY_REASON, _STRING),
            _required(schema.CREATED_AT, pa.int64()),
        ]
    ),
)
"""All answers, one row each, by the address of the prompt."""

FAILURES: Final = Table(
    "extract/failures",
    pa.schema(
        [
            _required(schema.PROMPT_HASH, _STRING),
            _required(schema.REASON, _STRING),
            pa.field(schema.PROMPT, _STRING),
            # The attempt in which it failed: within one attempt a failure is final.
            _required(PASS, _STRING),
            _required(schema.CREATED_AT, pa.int64()),
        ]
    ),
)
"""Failed prompts, one row each; kept after a later attempt has answered them."""


class PromptKeys:
    """Addresses of the prompts of a run in the answer cache."""

    def __init__(self, template: PromptTemplate, extract: ExtractConfig) -> None:
        self._template = template
        self._identity = {
            "model": extract.engine.model,
            "revision": extract.engine.revision,
            "sampling": extract.sampling.model_dump(mode="json"),
            "request": request_identity(extract),
        }
        self._prefixes: dict[SubjectKind, hashlib._Hash] = {}

    def of(self, kind: SubjectKind, body: str) -> str:
        """Hash everything that determines the answer to a prompt, 64 hexadecimal digits."""
        if kind not in self._prefixes:
            # Hashed once per kind: the body of a prompt is a tenth of it.
            identity = {**self._identity, "frame": self._template.identity(kind)}
            encoded = json.dumps(identity, sort_keys=True).encode()
            self._prefixes[kind] = hashlib.sha256(encoded)
        digest = self._prefixes[kind].copy()
        digest.update(body.encode("utf-8", errors="surrogatepass"))
        return digest.hexdigest()


class AnswerCache:
    """Answers and failures of one workspace.

    Example:
        >>> cache = AnswerCache(Workspace("runs/demo"))
        >>> answered = cache.index().find(digests_of(plan["prompt_hash"])) >= 0
    """

    def __init__(self, workspace: Workspace) -> None:
        what = "the answer cache"
        self._answers = ContentStore(workspace, LEDGER, schema.PROMPT_HASH, what=what)
        self._failures = ContentStore(
            workspace,
            FAILURES,
            schema.PROMPT_HASH,
            what=what,
            # A prompt may fail in one attempt after another.
            hash_rows=lambda rows: hash_strings(
                rows[schema.PROMPT_HASH].to_pylist(), suffix=rows[PASS][0].as_py()
            ),
        )

    def append(self, answers: pa.Table, failures: pa.Table) -> None:
        """Save one work unit; it survives a kill from here on.

        Args:
            answers: Rows of `LEDGER`.
            failures: Rows of `FAILURES`.

        Raises:
            EngineError: The workspace cannot be written.
        """
        for store, rows in ((self._answers, answers), (self._failures, failures)):
            if rows.num_rows:
                store.append(rows)

    def compact(self) -> int:
        """Merge small files into large ones; returns how many were merged."""
        return self._answers.compact() + self._failures.compact()

    def index(self) -> ContentIndex:
        """Index all answers, with the tokens of prompts and answers."""
        return self._answers.index([schema.PROMPT_TOKENS, schema.GENERATED_TOKENS])

    def read(self, path: str) -> pa.Table:
        """Read one file of answers."""
        return self._answers.read(path)

    def failures(self, attempt: str | None = None) -> pa.Table:
        """Rows of `FAILURES`, the latest of each prompt last.

        Args:
            attempt: Only those of one attempt; None reads all.
        """
        assert FAILURES.schema is not None
        rows = pa.concat_tables([FAILURES.schema.empty_table(), *self._failures.read_all()])
        if attempt is not None:
            rows = rows.filter(pc.equal(rows[PASS], attempt))
        return rows.sort_by(schema.CREATED_AT)


def digests_of(prompt_keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Convert addresses of prompts to (N,) digests.

    Raises:
        DataError: One is not a SHA-256 hash in hexadecimal digits.
    """
    try:
        return parse_digests(prompt_keys)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"prompt addresses are damaged: {error}",
            where="extract",
            todo="Run `reki extract --force extract`; delete the damaged file of extract/ledger.",
        ) from error
