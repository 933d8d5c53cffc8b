"""What the deployments tell each other arrives as it was sent."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from deployments.parts.records import UserRecord
from reki_ray.store.tables import Profile

PROFILE = Profile({"age": ["25"]}, ("m1", "m2"), (4.0, None), (1, None))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_record_arrives_whole_and_without_buffers_of_its_own(protocol: int) -> None:
    vector = np.array([0.1, -np.inf, 3e-45], dtype=np.float32)
    sent = UserRecord(PROFILE, vector, "cluster", "v3", "u7", ("m9",), "vectors_lost")
    apart: list[pickle.PickleBuffer] = []
    callback = apart.append if protocol >= 5 else None
    found = pickle.loads(pickle.dumps(sent, protocol, buffer_callback=callback))
    assert not apart
    assert found.vector is not None
    assert found.vector.dtype == np.float32
    np.testing.assert_array_equal(found.vector, vector)
    for field in dataclasses.fields(UserRecord):
        if field.name != "vector":
            assert getattr(found, field.name) == getattr(sent, field.name) != field.default


def test_a_record_without_vector_arrives_without_one() -> None:
    found = pickle.loads(pickle.dumps(UserRecord(PROFILE)))
    assert found == UserRecord(PROFILE)
