"""Section of stage encode."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from reki_ray.config.base import OPERATIONAL, ReplicaPool


class EncodeConfig(ReplicaPool):
    """Knowledge text to representation r."""

    backend: Literal["sentence_transformers", "vllm", "hidden_states", "hashing"] = (
        "sentence_transformers"
    )
    """sentence_transformers; vllm: the same models through vLLM's pooling; hidden_states: mean of
    the last hidden states of a decoder LLM, as in the REKI paper; hashing: words hashed into
    components, without a model, which keeps names and rare words."""
    dimension: int = Field(2048, ge=2)
    """hashing: length d of the vectors; a model has its own."""
    model: str = "packaged:all-minilm-l6-v2"
    """packaged:<name>, a local folder, or a Hugging Face id."""
    revision: str = "main"
    """Revision of a Hugging Face id; name a commit, as main may move. A local folder is identified
    by its content."""
    window: int | None = Field(None, ge=16)
    """Tokens per window, special ones included; longer texts are read window by window. null: the
    window of a sentence-transformers model, else 512."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model; vectors are saved as float32."""
    by_factor: bool = False
    """One representation per factor for answers that are kept by factor (prompts.form json, or
    imported so): the model weighs them by learned gates. false: one of the whole answer."""
    blend_events: float = Field(10.0, gt=0)
    """Mode blend: interactions before the cut at which an id's own knowledge and that of its
    cluster count alike; more of them favour its own."""
    engine_kwargs: dict[str, Any] = Field({})
    """Passed to vLLM unrenamed, over the preset (backend vllm): tensor_parallel_size,
    pooler_config, ..."""
    batch_size: int = Field(64, ge=1, json_schema_extra=OPERATIONAL)
    """Windows per forward pass."""
    unit_rows: int = Field(512, ge=1, json_schema_extra=OPERATIONAL)
    """Texts per work unit: finished units are saved one by one."""
    device: Literal["cpu", "cuda"] = Field("cpu", description="Device of an encoder actor.")

    @model_validator(mode="after")
    def _engine_kwargs_fit(self) -> EncodeConfig:
        if self.engine_kwargs and self.backend != "vllm":
            raise ValueError("encode.engine_kwargs needs encode.backend vllm")
        fields = {"model", "revision", "dtype", "max_model_len"} & self.engine_kwargs.keys()
        if fields:
            raise ValueError(
                f"encode.engine_kwargs holds {', '.join(sorted(fields))}: set encode.model, "
                "encode.revision, encode.dtype, encode.window"
            )
        return self
