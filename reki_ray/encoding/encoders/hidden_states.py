"""Mean-pooled hidden states of a decoder LLM: the knowledge encoder of the REKI paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders.protocol import EncoderIdentity, cannot_load, source_of
from reki_ray.encoding.encoders.windows import DEFAULT_WINDOW, Window, WindowEncoder


class HiddenStatesEncoder(WindowEncoder):
    """Averages the last hidden states of a causal language model.

    r = 1/T sum_t h_t, scaled to unit length, with h_t the last layer's output at the text's
    t-th token. Texts of a batch are padded on the right and the padding is left out of the
    mean; as attention is causal it does not reach the tokens before it either.

    Source: REKI (arXiv 2408.10520), section on knowledge encoding, whose encoder is ChatGLM with
    average pooling.

    Raises:
        ConfigError: There is no bundled model of that name.
        EngineError: The model cannot be loaded.
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity) -> None:
        self._device = torch.device(config.device)
        self._model, tokenizer = _load(config)
        window = config.window or DEFAULT_WINDOW
        longest = getattr(self._model.config, "max_position_embeddings", None)
        size = int(self._model.config.hidden_size)
        super().__init__(config, identity, tokenizer, min(window, longest or window), size)

    @torch.inference_mode()
    def _encode_batch(self, windows: list[Window]) -> np.ndarray:
        """Mean hidden states (B, d) float32."""
        longest = max(map(len, windows))
        # Padded with any id: nothing reads it, and some tokenizers have no padding token.
        tokens = torch.zeros((len(windows), longest), dtype=torch.long)  # (B, T)
        real = torch.zeros((len(windows), longest), dtype=torch.long)  # (B, T)
        for row, window in enumerate(windows):
            tokens[row, : len(window)] = torch.tensor(window)
            real[row, : len(window)] = 1
        real = real.to(self._device)
        states = self._model(
            input_ids=tokens.to(self._device), attention_mask=real, use_cache=False
        ).last_hidden_state.float()  # (B, T, d)
        weights = real.unsqueeze(-1).float()  # (B, T, 1)
        mean: np.ndarray = ((states * weights).sum(dim=1) / weights.sum(dim=1)).cpu().numpy()
        return mean


def _load(config: EncodeConfig) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer  # takes seconds

    path, revision = source_of(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **revision)
        model = AutoModel.from_pretrained(path, dtype=getattr(torch, config.dtype), **revision)
        return model.to(config.device).eval(), tokenizer
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_load(config, error) from error
