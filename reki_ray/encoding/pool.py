"""Encoding on the cluster: a Ray Data pool of encoder actors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from actors.encoding import EncodingActor
from reki_ray.assets import resolve_model
from reki_ray.config import EncodeConfig
from reki_ray.errors import DataError, EngineError, RekiError
from reki_ray.progress import Reporter
from reki_ray.schema import ID, TEXT, VECTOR

_ACTOR_CPUS = 1


def encode_texts(
    ids: Sequence[str],
    texts: Sequence[str],
    config: EncodeConfig,
    reporter: Reporter,
    label: str,
) -> np.ndarray:
    """Encode texts with a pool of actors on the Ray cluster that is initialised.

    Each distinct text is encoded once.

    Args:
        ids: N distinct ids.
        texts: Their texts, none of them blank.
        config: Model, batch size and number of actors.
        reporter: Shows progress.
        label: What is being encoded, as `cluster: encoding items`.

    Returns:
        (N, d) float32, rows of unit length, in the order of `ids`.

    Raises:
        DataError: A text is blank.
        EngineError: The model cannot be loaded, or the cluster is too small.
    """
    _check(ids, texts)
    resolve_model(
        config.model, say=reporter.say
    )  # an unknown name fails here, before any actor starts
    _require_resources(config)
    first = dict(zip(reversed(texts), reversed(ids), strict=True))  # distinct text -> its first id
    # Texts of similar length share a batch, which then needs little padding.
    distinct = sorted(first, key=lambda text: (-len(text), text))
    with reporter.task(label, total=len(distinct), unit="texts") as task:
        vectors: dict[str, np.ndarray] = {}
        try:
            for batch in _batches([first[text] for text in distinct], distinct, config):
                vectors.update(zip(batch[ID].tolist(), batch[VECTOR], strict=True))
                task.advance(len(batch[ID]))
        except RayError as error:
            raise _explain(error, config) from error
    if len(vectors) != len(distinct):
        raise EngineError(
            f"{len(distinct)} texts went in, {len(vectors)} vectors came out",
            where=label,
            todo="Run the stage again; if it happens again, report it with the logs of Ray.",
        )
    return np.stack([vectors[first[text]] for text in texts]).astype(np.float32)


def _batches(
    ids: list[str], texts: list[str], config: EncodeConfig
) -> Iterable[Mapping[str, np.ndarray]]:
    """Rows (id, vector) in any order."""
    table = pa.table({ID: ids, TEXT: texts})
    size = config.batch_size
    # One block a batch: otherwise a small table is one block, and one actor does all the work.
    blocks = [table.slice(start, size) for start in range(0, table.num_rows, size)]
    encoded = ray.data.from_arrow(blocks).map_batches(
        EncodingActor,
        fn_constructor_args=(config,),
        batch_size=size,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=config.concurrency),
        num_cpus=_ACTOR_CPUS,
        num_gpus=1 if config.device == "cuda" else 0,
    )
    batches: Iterable[Any] = encoded.iter_batches(batch_size=None, batch_format="numpy")
    return batches


def _check(ids: Sequence[str], texts: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        raise DataError(
            "ids occur twice among the texts to encode",
            where=f"{len(ids)} ids, {len(set(ids))} distinct",
            todo="Keep one row an id.",
        )
    blank = [key for key, text in zip(ids, texts, strict=True) if not text.strip()]
    if blank:
        raise DataError(
            f"{len(blank)} texts are blank and have no representation",
            where=f"id {blank[0]}",
            todo="Leave them out and give their ids a fallback vector.",
        )


def _require_resources(config: EncodeConfig) -> None:
    """Ray Data waits for ever where its actors take every CPU: one is left for its tasks."""
    there = ray.cluster_resources()
    needed = {"CPU": config.concurrency * _ACTOR_CPUS + 1}
    if config.device == "cuda":
        needed["GPU"] = config.concurrency
    for kind, amount in needed.items():
        if there.get(kind, 0) < amount:
            raise EngineError(
                f"encoding needs {amount} {kind}s, the cluster has {there.get(kind, 0):g}",
                where=f"encode.concurrency = {config.concurrency}, device {config.device}",
                todo="Lower encode.concurrency, or add nodes to the cluster.",
            )


def _explain(error: RayError, config: EncodeConfig) -> RekiError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, RekiError):
        return cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return EngineError(
        f"the encoder actors failed: {lines[-1].strip()}",
        where=f"encode.model = {config.model}",
        todo="Check that every node can load this model; lower encode.batch_size if memory ran "
        "out.",
    )
