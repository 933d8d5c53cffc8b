"""Engine that computes answers from the prompt, to test the whole stage without an LLM.

Its texts are deterministic and made of words of the subject, so that similar subjects get similar
answers.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from typing import TYPE_CHECKING

import pyarrow as pa
from typing_extensions import override

from reki_ray.config import ScriptedEngine as ScriptedConfig
from reki_ray.extraction.engines.protocol import Engine
from reki_ray.llm.outcome import Outcome, answer_table
from reki_ray.prompts.template import PromptTemplate, Reply
from reki_ray.schema import BODY, SUBJECT_KIND, SubjectKind

if TYPE_CHECKING:
    from ray.data import Dataset

_WORD = re.compile(r"[^\W\d_]{4,}")
_WORDS_PER_FACTOR = 3
_FRAME_WORDS = frozenset({"data", "answer"})


class ScriptedBatchEngine(Engine):
    """Engine for tests and dry runs, on the same Ray Data path as a real one."""

    name = "scripted"
    _config: ScriptedConfig

    @override
    def answer(self, questions: Dataset) -> Dataset:
        return questions.map_batches(
            ScriptedActor,
            fn_constructor_args=(self._config, self._template),
            **self.actors(),
        )


class ScriptedActor:
    """One replica of the scripted engine."""

    def __init__(self, config: ScriptedConfig, template: PromptTemplate) -> None:
        self._config = config
        self._template = template

    def __call__(self, questions: pa.Table) -> pa.Table:
        """Rows of `QUESTION_SCHEMA` to rows of `ANSWER_SCHEMA`."""
        rows = zip(questions[SUBJECT_KIND].to_pylist(), questions[BODY].to_pylist(), strict=True)
        return answer_table(questions, [self._outcome(kind, body) for kind, body in rows])

    def _outcome(self, kind: SubjectKind, body: str) -> Outcome:
        asked_at = time.time()
        if self._config.seconds:
            time.sleep(self._config.seconds)
        poison = self._config.fail_containing
        if poison and poison in body:
            return Outcome(None, f"the prompt contains {poison!r}", asked_at=asked_at)
        text = answer(self._template, body)
        reply = Reply(text, "stop", len(body.split()), 0, len(text.split()))
        return Outcome.of(self._template.parse_reply(kind, body, reply), None, [reply], asked_at)


def answer(template: PromptTemplate, body: str) -> str:
    """One text per factor, of words of the body chosen by hash, in the form of the template."""
    words = sorted({word.lower() for word in _WORD.findall(body)} - _FRAME_WORDS)
    encoded = [(word.encode(), word) for word in words]
    texts = {}
    for factor in template.factors:
        start = zlib.crc32(factor.encode())
        chosen = sorted(encoded, key=lambda pair: zlib.crc32(pair[0], start))[:_WORDS_PER_FACTOR]
        # With few words every factor would get the same text, which does not count as an answer.
        own = "" if len(encoded) > _WORDS_PER_FACTOR else f"{factor} of "
        texts[factor] = own + (", ".join(word for _, word in chosen) or "something")
    if template.form == "json":
        return json.dumps(texts)
    return "\n".join(f"{factor}: {text}" for factor, text in texts.items())
