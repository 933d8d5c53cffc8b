"""Sentence-transformers: models that were trained to embed sentences, such as MiniLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders.protocol import EncoderIdentity, cannot_load, source_of
from reki_ray.encoding.encoders.windows import DEFAULT_WINDOW, Window, WindowReader, batches

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceTransformersEncoder:
    """Runs a sentence-transformers model with its own pooling.

    Raises:
        ConfigError: There is no bundled model of that name.
        EngineError: The model cannot be loaded.
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity) -> None:
        self.identity = identity
        self._batch_size = config.batch_size
        self._model = _load(config)
        self._tokenizer: Any = self._model.tokenizer
        self.dimension: int = self._model.get_embedding_dimension()
        stated = self._model.max_seq_length or DEFAULT_WINDOW
        window = min(config.window or stated, stated)
        self._reader = WindowReader(self._tokenizer, window, self.dimension, self._forward, config)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`."""
        return self._reader.read(texts)

    def _forward(self, windows: list[Window]) -> np.ndarray:
        vectors = np.empty((len(windows), self.dimension))
        with torch.inference_mode():
            for rows, ids in batches(windows, self._batch_size):
                batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
                features = {name: value.to(self._model.device) for name, value in batch.items()}
                vectors[rows] = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return vectors


def _load(config: EncodeConfig) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer  # takes seconds

    path, revision = source_of(config)
    try:
        loaded = SentenceTransformer(
            path,
            device=config.device,
            model_kwargs={"dtype": getattr(torch, config.dtype)},
            **revision,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_load(config, error) from error
    return loaded.eval()
