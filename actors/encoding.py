"""The encoder actor: one frozen text encoder, kept in memory for batch after batch."""

from __future__ import annotations

import os

import numpy as np
import torch

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoder import TextEncoder
from reki_ray.schema import ID, TEXT, VECTOR


class EncodingActor:
    """What every actor of a Ray Data pool runs: the model is loaded once, when it starts.

    Args:
        config: Model, device and batch size.
    """

    def __init__(self, config: EncodeConfig) -> None:
        # Ray sets one OpenMP thread an actor; the cores of the node are shared by the pool.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.concurrency))
        self._encoder = TextEncoder(config.model, config.revision, config.device, config.batch_size)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows (id, text) to rows (id, vector)."""
        texts = [str(text) for text in batch[TEXT]]
        return {ID: batch[ID], VECTOR: self._encoder.encode(texts)}
