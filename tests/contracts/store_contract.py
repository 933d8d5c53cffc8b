"""What every holder of vectors promises, as functions over a way to load one.

A test makes a `Shelf`, which loads rows and opens them, and calls each promise with it.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reki_ray.config import AdapterSettings
from reki_ray.schema import Side
from reki_ray.store.kv import KeyedVectors, export_side, open_vectors
from reki_ray.store.vectors import DType, VectorTable, write_vectors

Array = npt.NDArray[np.float32]

FALLBACK = np.array([9.0, -0.0, 7.0], dtype=np.float32)
ODD_IDS = [
    *("", " ", "a", "A", "ü", "日本語", "🎬" * 300, "x" * 5000, "x" * 5001),
    *("a\x00b", "a/b", "\n", "@meta"),
]
ODD_FLOATS = np.array(
    [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 3.4e38, 1 / 3, 1.0, 2.0],
    dtype=np.float32,
).reshape(4, 3)
TEXT = st.text(max_size=40) | st.text(min_size=300, max_size=400)
"""Any text that UTF-8 can write."""
ASKED = st.text(st.characters(), max_size=20) | st.just("\ud800") | st.just("=")


class Shelf(ABC):
    """A holder of vectors under test; every `load` takes the next version's number."""

    def __init__(self) -> None:
        self.version = 0

    def load(
        self,
        ids: Sequence[str],
        vectors: Array,
        sources: Sequence[str] | None = None,
        *,
        dtype: DType = "float32",
        side: Side = "users",
    ) -> KeyedVectors:
        """Load rows as a version of their own, and open them."""
        self.version += 1
        named = ["cluster"] * len(ids) if sources is None else list(sources)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors"
            write_vectors(path, ids, vectors, named, dtype=dtype)
            return self.open(VectorTable([path], FALLBACK), side)

    @abstractmethod
    def open(self, table: VectorTable, side: Side) -> KeyedVectors:
        """Hold a table's rows, and open them."""


class ArrowShelf(Shelf):
    """The file itself."""

    def open(self, table: VectorTable, side: Side) -> KeyedVectors:
        del side
        return table


class ServedShelf(Shelf):
    """A folder of LMDB or a server."""

    def __init__(self, settings: AdapterSettings) -> None:
        super().__init__()
        self.settings = settings

    def open(self, table: VectorTable, side: Side) -> KeyedVectors:
        export_side(self.settings, self.version, side, table, "manifest")
        return open_vectors(self.settings, self.version, side, table, "manifest")


# --- the contract ----------------------------------------------------------------------------


def every_odd_id_finds_its_own_vector(shelf: Shelf) -> None:
    vectors = np.arange(3 * len(ODD_IDS), dtype=np.float32).reshape(-1, 3)
    sources = ["individual" if k % 2 else "fallback" for k in range(len(ODD_IDS))]
    held = shelf.load(ODD_IDS, vectors, sources)
    found, named = held.lookup(ODD_IDS[::-1])
    np.testing.assert_array_equal(found, vectors[::-1])
    assert named == held.sources(ODD_IDS[::-1]) == sources[::-1]
    assert len(held) == len(ODD_IDS)
    assert held.dimension == 3


def any_float32_comes_back_bit_by_bit(shelf: Shelf) -> None:
    held = shelf.load(list("abcd"), ODD_FLOATS)
    found, _ = held.lookup(list("abcd"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), ODD_FLOATS.view(np.uint32))


def half_precision_is_that_of_numpy(shelf: Shelf) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    ids = [f"id{k}" for k in range(50)]
    found, _ = shelf.load(ids, vectors, dtype="float16").lookup(ids)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors.astype(np.float16).astype(np.float32))


def an_unknown_id_gets_the_fallback_and_says_so(shelf: Shelf) -> None:
    held = shelf.load(["a"], ODD_FLOATS[2:3])
    asked = ["b", "a", "\ud800", "=a", "a" * 5000]
    found, named = held.lookup(asked)
    assert named == ["fallback", "cluster", "fallback", "fallback", "fallback"]
    assert named == held.sources(asked)
    for place in (0, 2, 3, 4):
        np.testing.assert_array_equal(found[place].view(np.uint32), FALLBACK.view(np.uint32))
    np.testing.assert_array_equal(held.fallback, FALLBACK)


def a_repeated_id_is_answered_every_time(shelf: Shelf) -> None:
    found, named = shelf.load(["a", "b"], ODD_FLOATS[2:]).lookup(["b", "a", "b", "b", "?", "?"])
    np.testing.assert_array_equal(found[[0, 2, 3]], ODD_FLOATS[[3, 3, 3]])
    np.testing.assert_array_equal(found[[4, 5]], [FALLBACK, FALLBACK])
    assert named == ["cluster"] * 4 + ["fallback"] * 2


def nothing_asked_is_nothing_answered(shelf: Shelf) -> None:
    held = shelf.load(["a"], ODD_FLOATS[:1])
    found, named = held.lookup([])
    assert found.shape == (0, 3)
    assert (named, held.sources([])) == ([], [])


def a_holder_of_nothing_answers_with_the_fallback(shelf: Shelf) -> None:
    held = shelf.load([], np.zeros((0, 3), np.float32))
    assert len(held) == 0
    found, named = held.lookup(["a", ""])
    np.testing.assert_array_equal(found, [FALLBACK, FALLBACK])
    assert named == ["fallback", "fallback"]


def a_thousand_ids_come_in_their_order(shelf: Shelf) -> None:
    vectors = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32)
    held = shelf.load([f"id{k}" for k in range(5000)], vectors)
    places = np.random.default_rng(2).integers(0, 5000, 1000)
    found, _ = held.lookup([f"id{k}" for k in places])
    np.testing.assert_array_equal(found, vectors[places])


def versions_and_sides_lie_side_by_side(shelf: Shelf) -> None:
    first = shelf.load(["a", "only first"], ODD_FLOATS[2:])
    items = shelf.load(["a"], ODD_FLOATS[3:], side="items")
    second = shelf.load(["a"], ODD_FLOATS[3:])
    np.testing.assert_array_equal(first.lookup(["a"])[0], ODD_FLOATS[2:3])
    for held in (items, second):
        np.testing.assert_array_equal(held.lookup(["a"])[0], ODD_FLOATS[3:])
        assert held.sources(["only first"]) == ["fallback"]


def any_rows_come_back(shelf: Shelf) -> None:
    @settings(deadline=None, max_examples=25)
    @given(
        ids=st.lists(TEXT, unique=True, max_size=8),
        asked=st.lists(ASKED, max_size=5),
        data=st.data(),
    )
    def check(ids: list[str], asked: list[str], data: st.DataObject) -> None:
        # Drawn as bits, so that NaN payloads, infinities and subnormals are among them.
        words = data.draw(hnp.arrays(np.uint32, (len(ids), 3)))
        held = shelf.load(ids, words.view(np.float32), ["individual"] * len(ids))
        found, named = held.lookup([*ids, *asked])
        known = dict(zip(ids, words, strict=True))
        for name, vector, source in zip([*ids, *asked], found, named, strict=True):
            wanted = known.get(name, FALLBACK.view(np.uint32))
            np.testing.assert_array_equal(vector.view(np.uint32), wanted)
            assert source == ("individual" if name in known else "fallback")

    check()


CONTRACT = (
    every_odd_id_finds_its_own_vector,
    any_float32_comes_back_bit_by_bit,
    half_precision_is_that_of_numpy,
    an_unknown_id_gets_the_fallback_and_says_so,
    a_repeated_id_is_answered_every_time,
    nothing_asked_is_nothing_answered,
    a_holder_of_nothing_answers_with_the_fallback,
    a_thousand_ids_come_in_their_order,
    versions_and_sides_lie_side_by_side,
    any_rows_come_back,
)
