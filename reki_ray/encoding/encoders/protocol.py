"""Interface of all encoders, and their identities."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reki_ray.config import EncodeConfig
from reki_ray.core.downloads import Say, model_here, resolve_model
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
"""Settings of vLLM that change only the speed; any other may change the vectors."""


@dataclass(frozen=True)
class EncoderIdentity:
    """All that determines a text's vector, and nothing that changes only the speed.

    Attributes:
        model: As the configuration names it.
        revision: Revision on the model hub, or `content-<hash>` of a local folder.
        window: Configured tokens of a window; None leaves it to the model.
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
        """Folder of this encoder's vectors in the cache, 16 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of a table about the encoder of its vectors."""
        return {
            "backend": self.backend,
            "model": self.model,
            "revision": self.revision,
            "identity": self.digest,
        }


class Encoder(Protocol):
    """A frozen text encoder.

    A text longer than the encoder's window is read window by window to its end; its vector is
    the mean of the windows' unit vectors, weighted by their tokens.

    Attributes:
        identity: What determines its vectors.
        dimension: Length d of its vectors.
    """

    identity: EncoderIdentity
    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encode N texts in full into unit vectors (N, d) float32.

        Raises:
            DataError: A text is blank, or a vector is not finite.
        """
        ...


def identify(config: EncodeConfig, *, say: Say | None = None) -> EncoderIdentity:
    """Compute the identity of the configured encoder, that of a local folder from its content.

    Args:
        say: Called before a bundled model is downloaded.

    Raises:
        ConfigError: There is no bundled model of that name.
        DataError: The downloaded model is damaged.
        EngineError: The model cannot be downloaded or read, or there is no such folder.
    """
    if config.backend == "hashing":
        settings = json.dumps({"dimension": config.dimension})
        return EncoderIdentity("hashing", "words", "1", None, "float32", settings)
    source = resolve_model(config.model, say=say)
    folder = Path(source)
    if source.startswith((".", "/")) and not folder.is_dir():
        # A model library would take it for an id and query the model hub for a minute.
        raise cannot_load(config, FileNotFoundError("there is no such folder"))
    try:
        content = f"content-{folder_digest(folder)[:12]}" if folder.is_dir() else None
    except OSError as error:
        raise EngineError(
            f"the model cannot be read: {error}",
            where=str(folder),
            todo="Check the folder and its permissions, or name another model.",
        ) from error
    deciding = {k: v for k, v in config.engine_kwargs.items() if k not in _SPEED_ONLY}
    return EncoderIdentity(
        backend=config.backend,
        model=config.model,
        revision=content or config.revision,
        window=config.window,
        dtype=config.dtype,
        settings=json.dumps(deciding, sort_keys=True, default=str),
    )


def check_texts(texts: Sequence[str | None]) -> None:
    """Refuse missing and blank texts, which have no direction.

    Raises:
        DataError: A text is null or blank.
    """
    for row, text in enumerate(texts):
        if text is None or not text.strip():
            raise DataError(
                "a blank text has no representation",
                where=f"text {row} of {len(texts)}",
                todo="Leave it out and give its id a fallback vector.",
            )


def source_of(config: EncodeConfig) -> tuple[str, dict[str, Any]]:
    """Folder or id that model libraries load, and the keyword arguments of its revision."""
    path = model_here(config.model)
    return path, ({} if Path(path).is_dir() else {"revision": config.revision})


@contextlib.contextmanager
def loading(config: EncodeConfig) -> Iterator[None]:
    """Turn errors of a model library that loads the encoder into an `EngineError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_load(config, error) from error


def cannot_load(config: EncodeConfig, error: Exception) -> EngineError:
    """Make the error of a model that does not load."""
    reason = str(error).partition("\n")[0]
    return EngineError(
        f"cannot load the encoder: {reason}",
        where=f"encode.model = {config.model}, revision {config.revision}, "
        f"backend {config.backend}, device {config.device}",
        todo="Name packaged:all-minilm-l6-v2, a folder that holds a model for this backend, or an "
        "id that this machine can download; device cuda needs a GPU.",
    )
