"""Texts to vectors in one call, without a run and without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from reki_ray.config import EncodeConfig
from reki_ray.core.content_store import digest_texts
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import build_encoder, identify
from reki_ray.encoding.encoders.protocol import check_texts
from reki_ray.encoding.vector_cache import VectorCache


def encode_texts(
    texts: Sequence[str] | pa.Array | pa.ChunkedArray,
    encoder: str | EncodeConfig = "hashing",
    cache: str | Path | None = None,
) -> np.ndarray:
    """Encode N texts into unit vectors (N, d) float32, in the order of the texts.

    Args:
        texts: Texts of any length, none of them null or blank.
        encoder: Backend with its defaults (`hashing`, `sentence_transformers`, `hidden_states`,
            `vllm`), or a configuration.
        cache: Workspace folder or URL whose vector cache is used, so that only new texts are
            encoded; None encodes all.

    Raises:
        ValueError: There is no backend of that name.
        DataError: A text is null or blank, or a file of the cache is damaged.
        EngineError: The model cannot be loaded, or the cache cannot be written.

    Example:
        >>> from reki_ray import encode_texts
        >>> vectors = encode_texts(["a space opera", "a space western", "a family drama"])
        >>> vectors.shape
        (3, 2048)
        >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        True
    """
    config = encoder
    if not isinstance(config, EncodeConfig):
        config = EncodeConfig.model_validate({"backend": encoder})
    values = texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else list(texts)
    check_texts(values)
    if cache is None or not values:
        return build_encoder(config).encode(values)
    identity = identify(config)
    vectors = VectorCache(Workspace(cache), identity)
    digests = digest_texts(values)
    distinct, first = np.unique(digests, return_index=True)
    new = first[vectors.index().find(distinct) < 0]
    if len(new):
        model = build_encoder(config, identity)
        # Saved unit by unit: a call that is interrupted keeps what it has encoded.
        for start in range(0, len(new), config.unit_rows):
            rows = new[start : start + config.unit_rows]
            vectors.append(digests[rows], model.encode([values[row] for row in rows]))
    return vectors.vectors(vectors.index(), digests)
