"""The encoder pool on a real Ray with the real MiniLM."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoder import TextEncoder
from reki_ray.encoding.pool import encode_texts
from reki_ray.errors import ConfigError, DataError, EngineError
from reki_ray.progress import Reporter

CONFIG = EncodeConfig(batch_size=4)
TEXTS = [f"{'a very ' * (7 * i % 5)}long film about topic {i}" for i in range(23)]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(CONFIG.model, CONFIG.revision, CONFIG.device, CONFIG.batch_size)


def test_vectors_have_unit_length_and_the_models_dimension(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dimension) == (23, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_encoding_twice_gives_the_same_bytes(encoder: TextEncoder) -> None:
    assert encoder.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


def test_a_long_text_is_read_to_its_end(encoder: TextEncoder) -> None:
    beginning = "the camera follows the ship " * 200  # 1,000 tokens; the window holds 256
    bright, dark = encoder.encode([beginning + "a wedding", beginning + "mass murder"])
    assert float(np.abs(bright - dark).max()) > 1e-4


def test_a_long_text_is_the_token_weighted_mean_of_its_windows(encoder: TextEncoder) -> None:
    window = " ".join(["film"] * 254)  # 254 tokens and two special ones fill a window of 256
    whole, first, rest = encoder.encode([f"{window} end of all", window, "end of all"])
    expected = 254 * first + 3 * rest
    np.testing.assert_allclose(whole, expected / np.linalg.norm(expected), atol=1e-5)


def test_blank_text_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(DataError, match="text 1 of 2"):
        encoder.encode(["fine", " \n"])


def test_no_texts_give_no_rows(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_a_missing_model_says_what_to_do() -> None:
    with pytest.raises(EngineError, match=r"packaged:all-minilm-l6-v2"):
        TextEncoder("/nowhere/model", "main", "cpu", 4)


@pytest.mark.usefixtures("ray_local")
def test_the_pool_keeps_the_order_of_ids(encoder: TextEncoder, reporter: Reporter) -> None:
    ids = [f"id{i}" for i in range(len(TEXTS))]
    vectors = encode_texts(ids, TEXTS, CONFIG, reporter, "test")
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=1e-5)


@pytest.mark.usefixtures("ray_local")
def test_equal_texts_share_one_encoding(encoder: TextEncoder, reporter: Reporter) -> None:
    vectors = encode_texts(["a", "b", "c"], ["same", "other", "same"], CONFIG, reporter, "test")
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(vectors, encoder.encode(["same", "other", "same"]), atol=1e-5)


def test_the_pool_names_the_id_of_a_blank_text(reporter: Reporter) -> None:
    with pytest.raises(DataError, match="id b"):
        encode_texts(["a", "b"], ["fine", "  "], CONFIG, reporter, "test")


def test_an_unknown_packaged_model_fails_before_ray_is_asked(reporter: Reporter) -> None:
    config = EncodeConfig(model="packaged:no-such-model")
    with pytest.raises(ConfigError, match="no-such-model"):
        encode_texts(["a"], ["fine"], config, reporter, "test")


@pytest.mark.usefixtures("ray_local")
def test_more_actors_than_cpus_are_refused_instead_of_hanging(reporter: Reporter) -> None:
    too_many = int(ray.cluster_resources()["CPU"])
    config = EncodeConfig(concurrency=too_many)
    with pytest.raises(EngineError, match=r"encode\.concurrency"):
        encode_texts(["a"], ["fine"], config, reporter, "test")


@pytest.mark.usefixtures("ray_local")
def test_a_model_that_no_actor_can_load_is_an_engine_error(reporter: Reporter) -> None:
    config = EncodeConfig(model="/nowhere/model")
    with pytest.raises(EngineError, match="/nowhere/model"):
        encode_texts(["a"], ["fine"], config, reporter, "test")
