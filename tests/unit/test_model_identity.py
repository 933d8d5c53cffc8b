"""What makes an answer another model's: weights and loading, not what only changes speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reki_ray.config import ExtractConfig
from reki_ray.extraction.model_identity import request_identity
from reki_ray.pipeline import fingerprints
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
