"""What new events do to clusters: who moves, and which are no longer what the LLM was told of.

No cluster is built anew: ids move between those that are there, and a name keeps its meaning from
round to round, so that the answer about a cluster holds until the cluster has drifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reki_ray.clustering.assignment import Assignment, assignment_of, nearest, split_until_close
from reki_ray.config import DriftConfig

_SAME = 1 - 1e-6
"""Cosine from which on two vectors count as the same: rounding of float32."""


@dataclass(frozen=True)
class Earlier:
    """Clusters of one side as an earlier round left them.

    Attributes:
        ids: N ids.
        vectors: (N, d), rows of unit length.
        clusters: Cluster of each id.
        asked: Cluster -> its members when it was last asked about.
        centres: Cluster -> its centre (d,) at that time.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    clusters: Sequence[str]
    asked: Mapping[str, set[str]]
    centres: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Placement:
    """Where every id belongs now.

    Attributes:
        clusters: Cluster of each id.
        similarities: (N,) float32, cosine of each id and its centre.
        centres: Cluster -> its centre (d,).
        placed: (N,) bool, ids that are new or moved.
        new: Number of ids that the earlier round did not know.
        moved: Number of ids that changed their cluster.
    """

    clusters: list[str]
    similarities: np.ndarray
    centres: dict[str, np.ndarray]
    placed: np.ndarray
    new: int
    moved: int


@dataclass(frozen=True)
class ClusterDrift:
    """How far a cluster is from what the LLM was told of it.

    Attributes:
        cluster_id: The cluster.
        size: Its members now.
        moved_share: Share of its members, of now and of then, that came or went since.
        centre_shift: 1 - cosine of its centre now and then.
    """

    cluster_id: str
    size: int
    moved_share: float
    centre_shift: float

    def exceeds(self, limits: DriftConfig) -> bool:
        """Whether the cluster is to be asked about again."""
        return self.moved_share > limits.moved_share or self.centre_shift > limits.centre_shift


def place(
    ids: Sequence[str], vectors: np.ndarray, earlier: Earlier, min_similarity: float | None
) -> Placement:
    """Put new ids into the nearest cluster, and move those whose nearest cluster changed.

    An id stays where its nearest centre is the same as before, also where it was never in the
    cluster of that centre: density methods put many an id elsewhere, and that is no drift.

    Args:
        ids: N distinct ids.
        vectors: (N, d), rows of unit length.
        earlier: What it starts from.
        min_similarity: Least cosine of an id and its centre; clusters are split to keep it.
    """
    names = sorted(set(earlier.clusters))
    label_of = {name: label for label, name in enumerate(names)}
    before = np.array([label_of[name] for name in earlier.clusters])
    centres = assignment_of(earlier.vectors, before, len(names)).centres
    row_of = {key: row for row, key in enumerate(earlier.ids)}
    old = np.array([row_of.get(key, -1) for key in ids])
    labels = np.where(old >= 0, before[old], -1)
    new = np.flatnonzero(old < 0)
    moved = _moved(vectors, earlier.vectors, old, centres)
    was = labels.copy()
    again = np.concatenate([new, moved])
    labels[again] = nearest(vectors[again], centres)[0]
    placed = labels != was
    found = _packed(vectors, labels, names, min_similarity, earlier)
    return Placement(
        clusters=found.clusters,
        similarities=found.assignment.similarities,
        centres=dict(zip(found.names, found.assignment.centres, strict=True)),
        placed=placed,
        new=len(new),
        moved=int(placed.sum()) - len(new),
    )


def drift(ids: Sequence[str], placement: Placement, earlier: Earlier) -> list[ClusterDrift]:
    """How far each cluster is from what it was when it was last asked about, by cluster id.

    A cluster that was never asked about has moved as a whole.

    Args:
        ids: N ids, as they were placed.
        placement: Where they belong now.
        earlier: What was asked about.
    """
    found = []
    for cluster, members in sorted(members_of(ids, placement.clusters).items()):
        then = earlier.asked.get(cluster, set())
        moved = 1.0 - len(members & then) / len(members | then)
        was = earlier.centres.get(cluster)
        shift = 1.0 if was is None else 1.0 - float(was @ placement.centres[cluster])
        found.append(ClusterDrift(cluster, len(members), moved, max(shift, 0.0)))
    return found


def members_of(ids: Sequence[str], clusters: Sequence[str]) -> dict[str, set[str]]:
    """Members of each cluster."""
    members: dict[str, set[str]] = {}
    for key, cluster in zip(ids, clusters, strict=True):
        members.setdefault(cluster, set()).add(key)
    return members


@dataclass(frozen=True)
class _Packed:
    clusters: list[str]
    names: list[str]
    assignment: Assignment


def _moved(
    vectors: np.ndarray, earlier: np.ndarray, old: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """Rows whose nearest centre has become another.

    Args:
        vectors: (N, d) now.
        earlier: (M, d) of the earlier round.
        old: (N,) row in `earlier`, -1 for a new id.
        centres: (K, d).
    """
    known = np.flatnonzero(old >= 0)
    cosines = np.einsum("nd,nd->n", vectors[known], earlier[old[known]])
    changed = known[cosines < _SAME]
    now = nearest(vectors[changed], centres)[0]
    then = nearest(earlier[old[changed]], centres)[0]
    turned: np.ndarray = changed[now != then]
    return turned


def _packed(
    vectors: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    min_similarity: float | None,
    earlier: Earlier,
) -> _Packed:
    """Clusters that still have members, split where they must be; new ones get new names."""
    alive, packed = np.unique(labels, return_inverse=True)
    kept = [names[label] for label in alive]
    assignment = assignment_of(vectors, packed, len(kept))
    if min_similarity is not None:
        assignment = split_until_close(vectors, assignment, min_similarity)
    prefix = names[0][0]
    used = max(int(name.removeprefix(prefix)) for name in {*names, *earlier.centres})
    added = range(used + 1, used + 1 + len(assignment.centres) - len(kept))
    kept += [f"{prefix}{number:04d}" for number in added]
    return _Packed([kept[label] for label in assignment.labels.tolist()], kept, assignment)
