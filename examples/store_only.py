"""Publish vectors as immutable versions, and look them up by id: no model, no Ray, no server.

    pip install reki-ray
    python examples/store_only.py

Vectors of any origin will do: augmented vectors of hein_only.py, encoded texts, or others.
"""

from pathlib import Path

import numpy as np

from reki_ray import VersionStore

store = VersionStore(Path("vectors"))
generator = np.random.default_rng(0)
ids = [f"item-{number}" for number in range(10_000)]

# A version is built aside, checked, and renamed into place; then the pointer CURRENT moves. A crash
# at any moment leaves the previous version current.
first = store.publish_vectors(items=(ids, generator.normal(size=(10_000, 32))))

# Later vectors become a second version, which is current only once it is promoted.
second = store.publish_vectors(items=(ids, generator.normal(size=(10_000, 32))), promote=False)
print(f"versions: {store.versions()}, current: {store.current()}")

# Files are memory-mapped: opening is fast, and processes on one machine share the memory.
version = store.open()
assert version.items is not None
vectors, sources = version.items.lookup(["item-7", "item-42", "unknown"])
print(f"looked up: {vectors.shape}, sources: {sources}")  # an unknown id gets the mean vector
version.close()

store.promote(second)
print(f"promoted: {store.current()}")
print(f"rolled back to: {store.rollback()}")
