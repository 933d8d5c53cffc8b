"""Conversion of a quantised GGUF file into a folder that vLLM loads on any device.

vLLM reads GGUF only on CUDA. Bfloat16 safetensors cost two bytes of disk per parameter.
"""

from __future__ import annotations

import json
from pathlib import Path

from reki_ray.errors import EngineError


def convert(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF model as bfloat16 safetensors with tokenizer and chat template into a folder.

    Raises:
        EngineError: The file is missing, damaged, or of an unknown architecture.
    """
    if not gguf_path.is_file():
        raise EngineError(
            "the GGUF file does not exist",
            where=str(gguf_path),
            todo="Delete the model's folder in the cache, and it is fetched again.",
        )
    source = {
        "pretrained_model_name_or_path": str(gguf_path.parent),
        "gguf_file": gguf_path.name,
    }
    try:
        import torch  # slow, and not needed after the conversion
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        # With this entry, vLLM would use its GGUF loader for the bfloat16 weights.
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("quantization_config", None)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise EngineError(
            f"the GGUF file cannot be converted: {error}",
            where=str(gguf_path),
            todo="Install reki-ray[cpu], which brings gguf and accelerate, or check the file.",
        ) from error
