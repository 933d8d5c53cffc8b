"""What makes an answer another model's: weights and loading, not what only changes speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reki_ray.config import ExtractConfig
from reki_ray.extraction.model_identity import request_identity
from reki_ray.stages.pipeline import fingerprints
from tests.conftest import TinyConfig


def identity(**engine: Any) -> dict[str, Any]:
    extract = ExtractConfig.model_validate({"engine": {"kind": "vllm", **engine}})
    return request_identity(extract)


def test_arguments_that_decide_an_answer_are_part_of_it() -> None:
    plain = identity()
    assert plain == {}
    for deciding in (
        {"quantization": "fp8"},
        {"hf_overrides": {"rope_scaling": None}},
        {"dtype": "float16"},
        {"an_argument_of_the_next_release": 1},
        {"load_format": "dummy"},
        {"load-format": "bitsandbytes"},
    ):
        assert identity(engine_kwargs=deciding) != plain, deciding
    for speed in ({"tensor_parallel_size": 2}, {"max-num-seqs": 8}, {"enforce_eager": False}):
        assert identity(engine_kwargs=speed) == plain, speed
    assert identity(chat_template_kwargs={"enable_thinking": False}) != plain
    assert identity(cpu_threads=2, env={"A": "b"}) == plain


def test_replaced_weights_are_another_model(tmp_path: Path, tiny_config: TinyConfig) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = folder / "model.safetensors"
    weights.write_bytes(b"1" * 4096)
    config = tiny_config(extract={"engine": {"kind": "vllm", "model": str(folder)}})
    before, prints = identity(model=str(folder)), fingerprints(config)
    assert before["weights"]
    weights.write_bytes(b"1" * 2048 + b"2" + b"1" * 2047)  # the same size
    assert identity(model=str(folder)) != before
    after = fingerprints(config)
    changed = {stage for stage in prints if prints[stage] != after[stage]}
    assert {"extract", "encode", "train"} <= changed
    assert not changed & {"ingest", "cluster"}
    # Where the folder is does not matter.
    folder.rename(tmp_path / "moved")
    assert (
        identity(model=str(tmp_path / "moved"))["weights"]
        == identity(model=str(tmp_path / "moved"))["weights"]
    )


@pytest.mark.parametrize("model", ["packaged:smollm2-135m-instruct", "org/a-model"])
def test_a_pinned_name_says_all(model: str) -> None:
    assert identity(model=model) == {}


def test_every_local_file_that_an_argument_names_is_part_of_the_model(tmp_path: Path) -> None:
    names = (
        "model.gguf",
        "tokenizer/tokenizer.json",
        "lora/adapter.bin",
        "chat.jinja",
        "draft/w.bin",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    engine = {
        "model": str(tmp_path / "model.gguf"),
        "engine_kwargs": {
            "tokenizer": str(tmp_path / "tokenizer"),
            "lora_modules": [{"name": "a", "path": str(tmp_path / "lora")}],
            "chat-template": str(tmp_path / "chat.jinja"),
            "speculative_config": {"model": str(tmp_path / "draft")},
            "dtype": "auto",
            "hf_overrides": "{% for a in b %}" * 1000,
            "quantization": "a\0b",
        },
    }
    before = identity(**engine)
    assert before["weights"]
    assert len(before["files"]) == 4
    for name in names:
        (tmp_path / name).write_text("2")
        assert identity(**engine) != before, name
        (tmp_path / name).write_text("1")
        assert identity(**engine) == before, name


def test_a_replaced_file_beside_the_model_runs_the_stage_again(
    tmp_path: Path, tiny_config: TinyConfig
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("1")
    kwargs = {"chat_template": str(template)}
    config = tiny_config(extract={"engine": {"kind": "vllm", "engine_kwargs": kwargs}})
    before = fingerprints(config)
    template.write_text("2")
    assert fingerprints(config)["extract"] != before["extract"]
