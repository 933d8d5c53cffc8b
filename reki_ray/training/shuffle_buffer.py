"""Random batches of a stream, from a pool of as many samples as memory is given to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from reki_ray.training.sample_files import PackedSamples


def shuffled_batches(
    chunks: Iterable[PackedSamples], batch_size: int, buffer: int, seed: list[int]
) -> Iterator[PackedSamples]:
    """Batches (batch_size, 4) of a stream, each drawn at random from the pool; the last is smaller.

    Every sample comes exactly once. The same chunks with the same seed give the same batches. A
    pool as large as the stream shuffles it whole.

    Args:
        chunks: The stream, (n, 4) each.
        batch_size: Samples a batch.
        buffer: Samples that the pool holds at least before one is drawn, up to the stream's end.
        seed: Seed of the draws.
    """
    random = np.random.default_rng(seed)
    pool = np.empty((0, 4), dtype=np.int32)
    count = 0
    least = max(buffer, batch_size)
    for chunk in chunks:
        pool = _append(pool, count, chunk)
        count += len(chunk)
        while count >= least:
            yield _draw(pool, count, batch_size, random)
            count -= batch_size
    while count:
        size = min(batch_size, count)
        yield _draw(pool, count, size, random)
        count -= size


def _append(pool: PackedSamples, count: int, chunk: PackedSamples) -> PackedSamples:
    """The pool with a chunk after its first `count` rows; larger only if there is no room."""
    needed = count + len(chunk)
    if needed > len(pool):
        larger = np.empty((needed, 4), dtype=np.int32)
        larger[:count] = pool[:count]
        pool = larger
    pool[count:needed] = chunk
    return pool


def _draw(pool: PackedSamples, count: int, size: int, random: np.random.Generator) -> PackedSamples:
    """Take `size` of the first `count` rows out; rows of the end move to where they lay."""
    drawn = random.choice(count, size, replace=False)
    batch = pool[drawn]
    left = count - size
    moving = np.ones(size, dtype=bool)  # the last `size` rows, without those drawn
    moving[drawn[drawn >= left] - left] = False
    pool[drawn[drawn < left]] = pool[left:count][moving]
    return batch
