"""What every encoder can do, and what tells two encoders apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reki_ray.config import EncodeConfig
from reki_ray.core.downloads import Say, resolve_model
from reki_ray.core.file_digests import folder_digest
from reki_ray.errors import DataError, EngineError

_SPEED_ONLY = frozenset(
    {
        "block_size",
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        "pipeline_parallel_size",
        "swap_space",
        "tensor_parallel_size",
    }
)
"""Settings of vLLM that change how fast vectors come; any other may change the vectors."""


@dataclass(frozen=True)
class EncoderIdentity:
    """All that determines a text's vector; how fast or where it is computed is no part of it.

    Attributes:
        backend: Name of the backend.
        model: Model as the configuration names it.
        revision: Revision on the model hub, or `content-<hash>` of a local folder.
        window: Tokens of a window, as configured; None leaves it to the model.
        dtype: Precision of the model.
        settings: Further settings of the engine, as JSON with sorted keys.
    """

    backend: str
    model: str
    revision: str
    window: int | None
    dtype: str
    settings: str = "{}"

    @property
    def digest(self) -> str:
        """Name of this encoder's vectors in the ledger, 16 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Encoder(Protocol):
    """A frozen text encoder.

    A text longer than the encoder's window is read window by window to its end; its vector is
    the mean of the windows' unit vectors, weighted by their tokens. An encoder that cuts
    instead keeps the beginning of an answer and silently drops the rest.

    Attributes:
        identity: What determines its vectors.
        dimension: Length d of its vectors.
    """

    identity: EncoderIdentity
    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts in full.

        Args:
            texts: N texts, none of them blank.

        Returns:
            (N, d) float32, rows of unit length, in the order of the texts.

        Raises:
            DataError: A text is blank, or a vector is not finite.
        """
        ...


def identify(config: EncodeConfig, *, say: Say | None = None) -> EncoderIdentity:
    """Identity of the configured encoder.

    A local folder is identified by its content, as another model may be saved over it. It is
    asked once, on the driver: the nodes of a cluster are expected to hold the same folder.

    Args:
        config: Section `encode`.
        say: Told before a packaged model is fetched.

    Raises:
        ConfigError: There is no packaged model of that name.
        DataError: The fetched model is damaged.
        EngineError: The model cannot be fetched or read, or there is no such folder.
    """
    if config.backend == "hashing":
        settings = json.dumps({"dimension": config.dimension})
        return EncoderIdentity("hashing", "words", "1", None, "float32", settings)
    source = resolve_model(config.model, say=say)
    folder = Path(source)
    if source.startswith((".", "/")) and not folder.is_dir():
        # A model library would take it for an id and ask the model hub for a minute.
        raise cannot_load(config, FileNotFoundError("there is no such folder"))
    revision = _content(folder) if folder.is_dir() else config.revision
    deciding = {k: v for k, v in config.engine_kwargs.items() if k not in _SPEED_ONLY}
    return EncoderIdentity(
        backend=config.backend,
        model=config.model,
        revision=revision,
        window=config.window,
        dtype=config.dtype,
        settings=json.dumps(deciding, sort_keys=True, default=str),
    )


def check_texts(texts: Sequence[str]) -> None:
    """Refuse blank texts, which have no direction.

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


def source_of(config: EncodeConfig) -> tuple[str, dict[str, Any]]:
    """What model libraries load: a folder or an id, and the keyword arguments of its revision."""
    path = resolve_model(config.model)
    return path, ({} if Path(path).is_dir() else {"revision": config.revision})


def cannot_load(config: EncodeConfig, error: Exception) -> EngineError:
    """The error of a model that does not load."""
    reason = str(error).partition("\n")[0]
    return EngineError(
        f"cannot load the encoder: {reason}",
        where=f"encode.model = {config.model}, revision {config.revision}, "
        f"backend {config.backend}, device {config.device}",
        todo="Name packaged:all-minilm-l6-v2, a folder that holds a model for this backend, or an "
        "id that this machine can download; device cuda needs a GPU.",
    )


def _content(folder: Path) -> str:
    """Hash of a model folder's files."""
    try:
        return f"content-{folder_digest(folder)[:12]}"
    except OSError as error:
        raise EngineError(
            f"the model cannot be read: {error}",
            where=str(folder),
            todo="Check the folder and its permissions, or name another model.",
        ) from error
