"""Encoders: frozen models that map a text of any length to one unit vector."""

from __future__ import annotations

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders.protocol import Encoder, EncoderIdentity, identify

__all__ = ["Encoder", "EncoderIdentity", "build_encoder", "identify"]


def build_encoder(config: EncodeConfig, identity: EncoderIdentity | None = None) -> Encoder:
    """Load the configured encoder in this process.

    Raises:
        ConfigError: There is no bundled model of that name.
        EngineError: The model cannot be loaded.
    """
    identity = identity or identify(config)
    # Imported where used: the backends' libraries are optional and take seconds to import.
    if config.backend == "vllm":
        from reki_ray.encoding.encoders.vllm import VllmEncoder

        return VllmEncoder(config, identity)
    if config.backend == "hashing":
        from reki_ray.encoding.encoders.feature_hash import HashingEncoder

        return HashingEncoder(config, identity)
    from reki_ray.encoding.encoders import transformer

    if config.backend == "hidden_states":
        return transformer.HiddenStatesEncoder(config, identity)
    return transformer.SentenceTransformersEncoder(config, identity)
