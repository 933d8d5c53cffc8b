"""Sentence-transformers: models that were trained to embed sentences, such as MiniLM."""

from __future__ import annotations

import numpy as np
import torch

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders.protocol import EncoderIdentity, loading, source_of
from reki_ray.encoding.encoders.windows import DEFAULT_WINDOW, Window, WindowEncoder


class SentenceTransformersEncoder(WindowEncoder):
    """Runs a sentence-transformers model with its own pooling.

    Raises:
        ConfigError: There is no bundled model of that name.
        EngineError: The model cannot be loaded.
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity) -> None:
        from sentence_transformers import SentenceTransformer  # takes seconds

        path, revision = source_of(config)
        with loading(config):
            model = SentenceTransformer(
                path,
                device=config.device,
                model_kwargs={"dtype": getattr(torch, config.dtype)},
                **revision,
            )
        self._model = model.eval()
        stated = self._model.max_seq_length or DEFAULT_WINDOW
        window = min(config.window or stated, stated)
        size = self._model.get_embedding_dimension()
        super().__init__(config, identity, self._model.tokenizer, window, size)

    @torch.inference_mode()
    def _encode_batch(self, windows: list[Window]) -> np.ndarray:
        batch = self._tokenizer.pad({"input_ids": windows}, return_tensors="pt")
        features = {name: value.to(self._model.device) for name, value in batch.items()}
        vectors: np.ndarray = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return vectors
