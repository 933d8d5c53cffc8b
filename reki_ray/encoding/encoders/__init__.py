"""Encoders: frozen models that turn a text of any length into one vector of unit length."""

from __future__ import annotations

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders.protocol import Encoder, EncoderIdentity, identify

__all__ = ["Encoder", "EncoderIdentity", "build_encoder", "identify"]


def build_encoder(config: EncodeConfig, identity: EncoderIdentity | None = None) -> Encoder:
    """Load the configured encoder in this process.

    Args:
        config: Section `encode`.
        identity: Its identity; None finds it out.

    Raises:
        ConfigError: There is no packaged model of that name.
        EngineError: The model cannot be loaded.
    """
    identity = identity or identify(config)
    # Each backend is imported where it is used: their libraries take seconds and are optional.
    if config.backend == "vllm":
        from reki_ray.encoding.encoders.vllm import VllmEncoder

        return VllmEncoder(config, identity)
    if config.backend == "hashing":
        from reki_ray.encoding.encoders.feature_hash import HashingEncoder

        return HashingEncoder(config, identity)
    if config.backend == "hidden_states":
        from reki_ray.encoding.encoders.hidden_states import HiddenStatesEncoder

        return HiddenStatesEncoder(config, identity)
    from reki_ray.encoding.encoders.sentence_transformers import SentenceTransformersEncoder

    return SentenceTransformersEncoder(config, identity)
