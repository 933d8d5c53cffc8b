"""What a version holds for retrieval, and how it is written.

retrieval/items.arrow          every item: id, training samples, its vector where there are
                               any; found by id, see `store.index`
retrieval/seen.arrow           every user with interactions: rows of items.arrow
retrieval/index.usearch        approximate index over the vectors of a large catalogue
retrieval/towers.safetensors   what makes vectors of users, and of items that come later
retrieval/retrieval.json       the rest that is needed to use them
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reki_ray.core.vectors import stack
from reki_ray.retrieval.index import Vectors, build_index
from reki_ray.schema import ITEM_ID, ITEM_ROWS, SAMPLE_COUNT, USER_ID, VECTOR
from reki_ray.store.hash_index import (
    IndexedTable,
    keep_rows,
    single_chunk,
    unusable,
    write_indexed,
)
from reki_ray.store.layers import LayeredTable

ITEMS_FILE: Final = "items.arrow"
SEEN_FILE: Final = "seen.arrow"
INDEX_FILE: Final = "index.usearch"
TOWERS_FILE: Final = "towers.safetensors"
DESCRIPTION_FILE: Final = "retrieval.json"


class RetrievalDescription(BaseModel):
    """A version's retrieval.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, description="Of the files beside it.")
    fingerprint: str = Field(
        "", description="Equal where training the towers again would give the same."
    )
    history: int = Field(0, description="Liked interactions that a user's vector is made of.")
    positive_above: float = Field(0.0, description="Ratings above it are liked.")
    recall: float | None = Field(
        None,
        description="Share of validation likes among 100 unseen candidates; null: not measured.",
    )
    popular_recall: float | None = Field(None, description="The same of the most popular items.")


def read_description(folder: Path) -> RetrievalDescription:
    """Description of retrieval files.

    Raises:
        StoreError: It is missing or damaged.
    """
    path = folder / DESCRIPTION_FILE
    try:
        description = RetrievalDescription.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise unusable(
            f"the description of retrieval is missing or damaged: {error}", path
        ) from error
    if description.format != 1:
        raise unusable(f"the retrieval files have format {description.format}, not 1", path)
    return description


def write_items(
    folder: Path,
    ids: Sequence[str],
    samples: npt.NDArray[np.int64],
    vectors: Vectors | None,
    *,
    exact_below: int,
) -> None:
    """Write the items, and the index over their vectors where it pays.

    Args:
        samples: Training samples of each item (I,).
        vectors: Their vectors (I, D); None without.
        exact_below: Items below which there is no index.
    """
    columns = {ITEM_ID: pa.array(ids, pa.string()), SAMPLE_COUNT: pa.array(samples)}
    if vectors is not None:
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    path = folder / ITEMS_FILE
    write_indexed(path, pa.table(columns), ITEM_ID, unique=True)
    if vectors is not None and len(vectors) >= exact_below:
        stored = item_vectors(IndexedTable(path, ITEM_ID))
        assert stored is not None
        build_index(folder / INDEX_FILE, stored)


def reduce_retrieval(folder: Path, earlier: Sequence[Path]) -> bool:
    """Keep of a version's new retrieval files only what a delta over another version needs.

    Items are numbered on from those of the earlier files, whose users keep their rows.

    Args:
        folder: The new files.
        earlier: Those of the version below, see `retrieval_folders`.

    Returns:
        Whether that was possible: nothing is changed where towers, index or known items differ.
    """
    indexed = (folder / INDEX_FILE).exists()
    if (
        read_description(folder) != read_description(earlier[0])
        or indexed != (earlier[0] / INDEX_FILE).exists()
    ):
        return False
    items = IndexedTable(folder / ITEMS_FILE, ITEM_ID)
    rows = np.full(len(items), -1, dtype=np.int64)
    start = 0
    for part in earlier:
        table = IndexedTable(part / ITEMS_FILE, ITEM_ID)
        places = items.find(table.keys.to_pylist())
        if (places < 0).any() or not items.rows.take(pa.array(places)).equals(table.rows):
            return False
        rows[places] = np.arange(start, start + len(table))
        start += len(table)
    new = np.flatnonzero(rows < 0)
    rows[new] = np.arange(start, start + len(new))
    seen = IndexedTable(folder / SEEN_FILE, USER_ID).rows
    lists = single_chunk(seen, ITEM_ROWS)
    numbers = np.append(rows, -1).astype(np.int32)[lists.values.to_numpy()]
    place = seen.schema.get_field_index(ITEM_ROWS)
    lists = pa.ListArray.from_arrays(lists.offsets, pa.array(numbers))
    seen = seen.set_column(place, seen.schema.field(place), lists)
    layers = LayeredTable([part / SEEN_FILE for part in reversed(earlier)], USER_ID)
    changed = layers.changed_rows(seen)
    if changed is None:
        return False
    keep_rows(folder / ITEMS_FILE, items.rows.take(pa.array(new)))
    keep_rows(folder / SEEN_FILE, seen.take(pa.array(changed)))
    for name in (INDEX_FILE, TOWERS_FILE, DESCRIPTION_FILE):
        (folder / name).unlink(missing_ok=True)
    return True


def item_vectors(items: IndexedTable) -> Vectors | None:
    """Vectors (I, D) of an items file in the order of its rows, memory-mapped; None without."""
    if VECTOR not in items.rows.column_names:
        return None
    return stack(items.rows.column(VECTOR))


def write_seen(folder: Path, history: pa.Table) -> None:
    """Write which items each user has met in all interactions, by user, beside the items."""
    met = history.column(ITEM_ID).combine_chunks().dictionary_encode()
    rows = IndexedTable(folder / ITEMS_FILE, ITEM_ID).find(met.dictionary.to_pylist())
    met_rows = rows.astype(np.int32)[met.indices.to_numpy()] if len(met) else rows.astype(np.int32)
    users = pc.run_end_encode(history.column(USER_ID).combine_chunks())
    ends = np.asarray(users.run_ends, dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(np.append(np.int32(0), ends)), pa.array(met_rows))
    table = pa.table({USER_ID: users.values.cast(pa.string()), ITEM_ROWS: lists})
    write_indexed(folder / SEEN_FILE, table, USER_ID, unique=True)
