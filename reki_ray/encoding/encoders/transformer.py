"""Encoders that run in torch: sentence-transformers, and decoder LLMs with mean pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders.protocol import EncoderIdentity, loading, source_of
from reki_ray.encoding.encoders.windows import DEFAULT_WINDOW, Window, WindowEncoder


class SentenceTransformersEncoder(WindowEncoder):
    """Runs a model that was trained to embed sentences, such as MiniLM, with its own pooling."""

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


class HiddenStatesEncoder(WindowEncoder):
    """Averages the last hidden states of a decoder LLM: the knowledge encoder of the REKI paper.

    r = 1/T sum_t h_t, scaled to unit length, with h_t the last layer's output at the text's
    t-th token. Texts of a batch are padded on the right and the padding is left out of the
    mean; as attention is causal it does not reach the tokens before it either.

    Source: REKI (arXiv 2408.10520), section on knowledge encoding, whose encoder is ChatGLM with
    average pooling.
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity) -> None:
        from transformers import AutoModel, AutoTokenizer  # takes seconds

        path, revision = source_of(config)
        with loading(config):
            tokenizer = AutoTokenizer.from_pretrained(path, **revision)
            model = AutoModel.from_pretrained(path, dtype=getattr(torch, config.dtype), **revision)
            self._model: Any = model.to(config.device).eval()
        window = config.window or DEFAULT_WINDOW
        longest = getattr(self._model.config, "max_position_embeddings", None)
        size = int(self._model.config.hidden_size)
        super().__init__(config, identity, tokenizer, min(window, longest or window), size)

    @torch.inference_mode()
    def _encode_batch(self, windows: list[Window]) -> np.ndarray:
        """Mean hidden states (B, d) float32."""
        # Padded with any id: nothing reads it, and some tokenizers have no padding token.
        rows = [torch.tensor(window) for window in windows]
        tokens = pad_sequence(rows, batch_first=True)  # (B, T)
        real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)  # (B, T)
        real = real.to(self._model.device)
        states = self._model(
            input_ids=tokens.to(real.device), attention_mask=real, use_cache=False
        ).last_hidden_state.float()  # (B, T, d)
        weights = real.unsqueeze(-1).float()  # (B, T, 1)
        mean: np.ndarray = ((states * weights).sum(dim=1) / weights.sum(dim=1)).cpu().numpy()
        return mean
