"""Frozen sentence encoder: text of any length to one L2-normalised vector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reki_ray.assets import resolve_model
from reki_ray.errors import DataError, EngineError
from reki_ray.vectors import normalise

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_DEFAULT_WINDOW = 512
"""Tokens of a window where a model does not state its own."""


class TextEncoder:
    """A sentence-transformers model that reads every text to its end.

    A text longer than the model's window is divided into windows of tokens; its vector is the
    mean of the windows' vectors, weighted by their tokens. An encoder that cuts instead keeps
    the beginning of an answer and silently drops the rest.

    Args:
        model: `packaged:<name>`, a local folder, or a sentence-transformers id.
        revision: Revision of an id on the model hub; a local folder has none.
        device: `cpu` or `cuda`.
        batch_size: Windows a forward pass.

    Raises:
        ConfigError: There is no packaged model of that name.
        EngineError: The model cannot be loaded.
    """

    def __init__(self, model: str, revision: str, device: str, batch_size: int) -> None:
        self._batch_size = batch_size
        self._model = _load(model, revision, device)
        tokenizer = self._model.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise EngineError(
                "the encoder has no fast tokenizer, without which long texts would be cut",
                where=f"encode.model = {model}",
                todo="Choose a model with a tokenizer.json.",
            )
        self._tokenizer: Any = tokenizer
        self._window: int = self._model.max_seq_length or _DEFAULT_WINDOW
        self._special: int = tokenizer.num_special_tokens_to_add()
        self.dimension: int = self._model.get_embedding_dimension()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts in full.

        Args:
            texts: N texts, none of them blank.

        Returns:
            (N, d) float32, rows of unit length, in the order of the texts.

        Raises:
            DataError: A text is blank.
        """
        for row, text in enumerate(texts):
            if not text.strip():
                raise DataError(
                    "a blank text has no representation",
                    where=f"text {row} of {len(texts)}",
                    todo="Leave it out and give its id a fallback vector.",
                )
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        windows, owners = self._windows(texts)
        weights = np.array([max(len(w) - self._special, 1) for w in windows], dtype=np.float64)
        vectors = self._forward(windows)  # (W, d)
        sums = np.zeros((len(texts), self.dimension))
        np.add.at(sums, owners, vectors * weights[:, None])  # (N, d)
        return normalise(sums)

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[int]], np.ndarray]:
        """Token ids of all windows, each with its special tokens, and the text of each."""
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._window,
            return_overflowing_tokens=True,
            stride=0,
        )
        return encoded["input_ids"], np.asarray(encoded["overflow_to_sample_mapping"])

    def _forward(self, windows: list[list[int]]) -> np.ndarray:
        """Vectors (W, d) float64 of windows; similar lengths share a pass, to pad little."""
        order = np.argsort([-len(window) for window in windows], kind="stable")
        vectors = np.empty((len(windows), self.dimension))
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                ids = [windows[row] for row in rows]
                batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
                features = {name: value.to(self._model.device) for name, value in batch.items()}
                vectors[rows] = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return vectors


def _load(model: str, revision: str, device: str) -> SentenceTransformer:
    # Here and not above: whoever only schedules encoders must not wait seconds for this import.
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    path = resolve_model(model)
    local = Path(path).is_dir()
    try:
        loaded = SentenceTransformer(path, device=device, revision=None if local else revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise EngineError(
            f"cannot load the encoder: {reason}",
            where=f"encode.model = {model}, revision {revision}, device {device}",
            todo="Name packaged:all-minilm-l6-v2, a folder that holds a sentence-transformers "
            "model, or an id that this machine can download; device cuda needs a GPU.",
        ) from error
    return loaded.eval()
