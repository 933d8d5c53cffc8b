"""Prestored h and r give the same scores; half precision stays close."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from reki_ray.core.progress import Reporter
from reki_ray.errors import DataError, StoreError
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.stages.publish_vectors import SideRepresentations, Vectors, write_side
from reki_ray.store.vectors import DType
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.store_factory import ITEM_IDS, USER_IDS

CANDIDATES = [*ITEM_IDS, "unknown"]


def _scores(version: StoreVersion) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    scorer = version.load_scorer()
    assert version.users is not None
    history = [HistoryEvent("m1", 4.0, 100), HistoryEvent("m2", None, 150)]
    vectors, _ = version.users.lookup([*USER_IDS, "nobody"])
    users = [UserInput({"gender": ["F"]}, history, vector) for vector in vectors]
    return np.stack([scorer.score(user, CANDIDATES) for user in users])


def _open(tmp_path: Path, **choice: str) -> StoreVersion:
    store = VersionStore(tmp_path / "-".join(choice.values()))
    store.publish(partial(store_factory.fill, **choice))  # type: ignore[arg-type]
    return store.open()


def test_both_modes_score_alike(tmp_path: Path) -> None:
    h, r = (_open(tmp_path, prestore=mode) for mode in ("h", "r"))
    assert (h.prestore, r.prestore) == ("h", "r")
    scores = _scores(h)
    assert scores.std() > 0.01
    np.testing.assert_allclose(_scores(r), scores, atol=1e-6)


@pytest.mark.parametrize("mode", ["h", "r"])
def test_half_precision_moves_scores_little(tmp_path: Path, mode: str) -> None:
    full = _scores(_open(tmp_path, prestore=mode))
    half = _open(tmp_path, prestore=mode, dtype="float16")
    assert half.manifest.dtype == "float16"
    np.testing.assert_allclose(_scores(half), full, atol=5e-3)


def test_a_representation_of_another_length_is_refused(tmp_path: Path) -> None:
    scorer = _open(tmp_path, prestore="r").load_scorer()
    with pytest.raises(StoreError, match="the model needs"):
        scorer.score(UserInput(None, [], np.zeros(3, np.float32)), CANDIDATES)
    with pytest.raises(StoreError, match="shape None"):
        scorer.score(UserInput(None, [], None), CANDIDATES)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70_000.0), ("float32", np.inf)])
def test_vectors_that_are_not_finite_as_stored_are_not_published(
    tmp_path: Path, dtype: DType, value: float
) -> None:
    r = np.ones((3, 2), dtype=np.float32)
    found = SideRepresentations(["a", "b", "c"], r, ["individual"] * 3)

    def augment(part: Vectors) -> Vectors:
        if len(part) == 3:  # not the one of an unknown id
            part[1, 0] = value
        return part

    with (
        Reporter(quiet=True).task("publish", 3, "ids") as task,
        pytest.raises(DataError, match=f"the {dtype} vector of 'b' is not finite"),
    ):
        write_side(tmp_path, "users", found, augment, dtype=dtype, task=task)
    assert not list(tmp_path.iterdir())
