"""The encoder actor: one frozen text encoder, kept in memory for unit after unit."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray.config import EncodeConfig
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import Encoder, EncoderIdentity, build_encoder
from reki_ray.encoding.vector_cache import DIGEST, TEXT_HASH, VectorCache
from reki_ray.errors import RekiError
from reki_ray.schema import TEXT


class EncodingActor:
    """What every actor of a Ray Data pool runs: the model is loaded once, when it starts.

    A unit's texts are read from a file and its vectors are written into the ledger here, where
    they are made: neither passes through Ray or the driver.

    Args:
        config: Section `encode`.
        identity: Identity of the encoder, found out by the driver.
        location: The workspace.
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity, location: str) -> None:
        import torch  # the driver imports this module and needs no torch

        # Ray sets one OpenMP thread an actor; the cores of the node are shared by the pool.
        threads = max(1, len(os.sched_getaffinity(0)) // config.max_replicas)
        torch.set_num_threads(threads)
        if config.backend != "vllm":  # which may fork, as the driver, and then threads can hang
            os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}
        self._encoder: Encoder | RekiError
        try:
            self._encoder = build_encoder(config, identity)
        except RekiError as error:
            # Raised by the first call: Ray starts an actor again and again whose start fails.
            self._encoder = error
        self._workspace = Workspace(location)
        self._ledger = VectorCache(self._workspace, identity)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode and keep units; rows (name, path, row_group, rows) to rows (name)."""
        if isinstance(self._encoder, RekiError):
            raise self._encoder
        for unit in batch.to_pylist():
            # An actor that died after it kept a unit is asked for that unit again.
            if not self._ledger.has(unit["name"]):
                digests, texts = self._read(unit["path"], unit["row_group"], unit["rows"])
                self._ledger.append(digests, self._encoder.encode(texts))
        return batch.select(["name"])

    def _read(self, path: str, row_group: int, rows: list[int]) -> tuple[np.ndarray, list[str]]:
        with self._workspace.filesystem.open(path, "rb") as source:
            table = pq.ParquetFile(source).read_row_group(row_group).take(rows)
        return np.array(table[TEXT_HASH].to_pylist(), dtype=DIGEST), table[TEXT].to_pylist()
