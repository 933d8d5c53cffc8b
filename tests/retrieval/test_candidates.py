"""Candidates are unseen, as many as asked for, near to what was liked, popular for strangers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from reki_ray.errors import StoreError
from reki_ray.retrieval import files
from reki_ray.retrieval.candidates import Candidates, NewItems
from reki_ray.retrieval.index import Vectors
from reki_ray.schema import INTERACTIONS_SCHEMA

ITEMS = [f"m{number}" for number in range(60)]
NEW = ["new 0", "new 1"]
DIMENSION = 4
COUNTS = np.array([60 - number for number in range(60)], dtype=np.int64)
SEEN = {"reader": ITEMS[:25], "all": ITEMS, "ü": ["m3"]}


def vectors() -> Vectors:
    """Every fifteenth item points into the same direction."""
    found = np.eye(DIMENSION, dtype=np.float32)[np.arange(60) % DIMENSION]
    found += np.random.default_rng(0).normal(size=found.shape).astype(np.float32) * 0.05
    unit: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def write(folder: Path, *, near: bool = True, exact_below: int = 1000) -> Path:
    folder.mkdir()
    found = vectors() if near else None
    files.write_items(folder, ITEMS, COUNTS, found, exact_below=exact_below)
    rows = [
        {"user_id": user, "item_id": item, "timestamp": place, "rating": 5.0, "label": 1}
        for user, items in sorted(SEEN.items())
        for place, item in enumerate(items)
    ]
    files.write_seen(folder, pa.Table.from_pylist(rows, schema=INTERACTIONS_SCHEMA))
    description = files.RetrievalDescription(history=3, positive_above=3.0)
    if near:
        tower = {"users.weight": np.eye(DIMENSION), "users.bias": np.zeros(DIMENSION)}
        save_file(
            {name: value.astype(np.float32) for name, value in tower.items()},
            folder / files.TOWERS_FILE,
        )
    (folder / files.DESCRIPTION_FILE).write_text(description.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Candidates]:
    """Candidates of every kind: exact, by the index, with later items, popular alone."""
    root = tmp_path_factory.mktemp("kinds")
    exact = write(root / "exact")
    later = np.eye(DIMENSION, dtype=np.float32)[:2]
    return {
        "exact": Candidates([exact]),
        "index": Candidates([write(root / "index", exact_below=0)]),
        "new": Candidates([exact], NewItems(NEW, later)),
        "popular": Candidates([write(root / "popular", near=False)]),
        "popular, new": Candidates([root / "popular"], NewItems(NEW, None)),
    }


KINDS = ("exact", "index", "new", "popular", "popular, new")
NAMES = st.sampled_from([*ITEMS, *NEW, "unknown", ""])


@given(
    kind=st.sampled_from(KINDS),
    user=st.sampled_from([*SEEN, "nobody", "", "\udc80"]),
    history=st.lists(st.tuples(NAMES, st.none() | st.floats(1, 5)), max_size=12),
    exclude=st.lists(NAMES, max_size=30),
    count=st.integers(0, 80),
)
@settings(max_examples=300, deadline=None)
def test_what_is_known_to_be_seen_never_comes_and_all_else_does(
    kinds: dict[str, Candidates],
    kind: str,
    user: str,
    history: list[tuple[str, float | None]],
    exclude: list[str],
    count: int,
) -> None:
    found = kinds[kind].of(user, history, count, exclude)
    catalogue = {*ITEMS, *(NEW if "new" in kind else [])}
    left = catalogue - {*SEEN.get(user, []), *exclude, *(item for item, _ in history)}
    assert len(found) == len(set(found)) == min(count, len(left))
    assert set(found) <= left
    assert kinds[kind].of(user, history, count, exclude) == found


@pytest.mark.parametrize("kind", KINDS)
def test_strangers_get_the_most_popular_items(kinds: dict[str, Candidates], kind: str) -> None:
    assert kinds[kind].of("nobody", [], 5) == ITEMS[:5]
    assert kinds[kind].of("reader", [], 3) == ITEMS[25:28]
    assert kinds[kind].of("nobody", [("m1", 1.0)], 3, ["m0"]) == ["m2", "m3", "m4"]


@pytest.mark.parametrize("kind", ["exact", "index"])
def test_candidates_are_near_to_what_was_liked_last(
    kinds: dict[str, Candidates], kind: str
) -> None:
    # The disliked one and those before the last three liked ones say nothing.
    history = [("m0", 5.0), ("m1", 5.0), ("m5", None), ("m9", 4.0), ("m2", 2.0)]
    found = kinds[kind].of("nobody", history, 12)
    assert {ITEMS.index(item) % DIMENSION for item in found} == {1}


def test_later_items_are_found_by_their_vector_and_make_users_known(
    kinds: dict[str, Candidates],
) -> None:
    assert kinds["new"].of("nobody", [("m4", 5.0)], 16)[:16].count("new 0") == 1
    near_new = kinds["new"].of("nobody", [("new 1", 5.0)], 10)
    assert {ITEMS.index(item) % DIMENSION for item in near_new} == {1}
    assert kinds["new"].of("all", [], 5) == NEW


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "files")
    towers = folder / files.TOWERS_FILE
    save_file({"users.weight": np.eye(3), "users.bias": np.zeros(3)}, towers)
    with pytest.raises(StoreError, match="length 3, items have 4"):
        Candidates([folder])
    towers.write_bytes(b"x")
    with pytest.raises(StoreError, match="towers are missing or damaged"):
        Candidates([folder])
    (folder / files.DESCRIPTION_FILE).write_text("{")
    with pytest.raises(StoreError, match="description of retrieval"):
        Candidates([folder])
