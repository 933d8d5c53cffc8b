"""The encoder actor: one frozen text encoder, loaded once and used for many work units."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray.config import EncodeConfig
from reki_ray.core.content_store import DIGEST
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import Encoder, EncoderIdentity, build_encoder
from reki_ray.encoding.vector_cache import TEXT_HASH, VectorCache
from reki_ray.errors import RekiError
from reki_ray.schema import TEXT


class EncodingActor:
    """Encodes work units in a Ray Data pool.

    It reads the texts of a unit from a file and writes the vectors into the cache: neither passes
    through Ray or the driver.
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity, location: str) -> None:
        import torch  # the driver imports this module and needs no torch

        # Ray sets one OpenMP thread per actor; the pool shares the cores of the node.
        threads = max(1, len(os.sched_getaffinity(0)) // config.max_replicas)
        torch.set_num_threads(threads)
        if config.backend != "vllm":  # vLLM may fork, and the threads of a fork can hang
            os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}
        self._encoder: Encoder | RekiError
        try:
            self._encoder = build_encoder(config, identity)
        except RekiError as error:
            # Raised by the first call: Ray restarts an actor whose start fails again and again.
            self._encoder = error
        self._workspace = Workspace(location)
        self._cache = VectorCache(self._workspace, identity)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode and save units; rows (name, path, row_group, rows) to rows (name)."""
        if isinstance(self._encoder, RekiError):
            raise self._encoder
        for unit in batch.to_pylist():
            # An actor may have saved this unit and died before it reported it.
            if self._cache.has(unit["name"]):
                continue
            with self._workspace.filesystem.open(unit["path"], "rb") as source:
                rows = pq.ParquetFile(source).read_row_group(unit["row_group"]).take(unit["rows"])
            digests = np.array(rows[TEXT_HASH].to_pylist(), dtype=DIGEST)
            self._cache.append(digests, self._encoder.encode(rows[TEXT].to_pylist()))
        return batch.select(["name"])
