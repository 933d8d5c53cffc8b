"""Long texts, cut into windows of tokens whose vectors are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reki_ray.config import EncodeConfig
from reki_ray.core.vectors import normalise
from reki_ray.encoding.encoders.protocol import EncoderIdentity, check_texts
from reki_ray.errors import DataError, EngineError

DEFAULT_WINDOW = 512
"""Tokens of a window if neither the configuration nor the model states it."""

Window = list[int]
"""Token ids of a window, special ones included."""


class WindowEncoder:
    """Encoder that reads texts of any length window by window; subclasses compute the vectors.

    Args:
        tokenizer: A fast tokenizer of the transformers library.
        window: Tokens of a window, special ones included.
        dimension: Length d of the vectors.

    Raises:
        EngineError: The tokenizer is not a fast one.
    """

    def __init__(
        self,
        config: EncodeConfig,
        identity: EncoderIdentity,
        tokenizer: Any,
        window: int,
        dimension: int,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise EngineError(
                "the encoder has no fast tokenizer: long texts would be truncated",
                where=f"encode.model = {config.model}",
                todo="Choose a model with a tokenizer.json.",
            )
        self.identity = identity
        self.dimension = dimension
        self._tokenizer = tokenizer
        self._window = window
        self._batch_size = config.batch_size
        self._special: int = tokenizer.num_special_tokens_to_add()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`."""
        check_texts(texts)
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        windows, owners = self._cut(texts)
        weights = np.array([max(len(w) - self._special, 1) for w in windows], dtype=np.float64)
        vectors = normalise(self._forward(windows)).astype(np.float64)  # (W, d)
        sums = np.zeros((len(texts), self.dimension))
        np.add.at(sums, owners, vectors * weights[:, None])  # (N, d)
        broken = np.flatnonzero(~np.isfinite(sums).all(axis=1))
        if len(broken):
            raise DataError(
                f"the encoder returned NaN or infinity for {len(broken)} of {len(texts)} texts",
                where=f"text {texts[broken[0]][:40]!r}",
                todo="Set encode.dtype to float32, or choose another encoder.",
            )
        return normalise(sums)

    def _forward(self, windows: list[Window]) -> np.ndarray:
        """Vectors (W, d); batches windows of similar length, which need little padding."""
        vectors = np.empty((len(windows), self.dimension))
        order = np.argsort([-len(window) for window in windows], kind="stable")
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            vectors[rows] = self._encode_batch([windows[row] for row in rows])
        return vectors

    def _encode_batch(self, windows: list[Window]) -> np.ndarray:
        """Vectors (B, d) of one forward pass."""
        raise NotImplementedError

    def _cut(self, texts: Sequence[str]) -> tuple[list[Window], np.ndarray]:
        """Token ids of all windows, special ones included, and the text of each."""
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._window,
            return_overflowing_tokens=True,
            stride=0,
        )
        windows: list[Window] = encoded["input_ids"]
        owners = np.asarray(encoded["overflow_to_sample_mapping"])
        for window, owner in zip(windows, owners, strict=True):
            if not window:
                raise DataError(
                    f"the encoder has no token for the text {texts[owner][:40]!r}",
                    where=f"text {owner} of {len(texts)}",
                    todo="Correct the text, or choose an encoder that knows its script.",
                )
        return windows, owners
