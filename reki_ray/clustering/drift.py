"""What new events do to clusters: which ids move, and which clusters have drifted.

No clusters are created: ids move between the existing ones, and a name keeps its meaning from
update to update, so that the answer about a cluster holds until the cluster has drifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reki_ray.clustering.assignment import assignment_of, nearest, split_until_close
from reki_ray.config import DriftConfig

_SAME = 1 - 1e-6
"""Cosine from which two vectors count as equal: rounding of float32."""


@dataclass(frozen=True)
class Earlier:
    """Clusters of one side after the previous update.

    Attributes:
        vectors: (N, d), rows of unit length.
        asked: Cluster -> its members at its last prompt.
        centres: Cluster -> its centre (d,) at its last prompt.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    clusters: Sequence[str]
    asked: Mapping[str, set[str]]
    centres: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Placement:
    """The cluster of every id now.

    Attributes:
        similarities: (N,) float32, cosine of each id to its centre.
        centres: Cluster -> its centre (d,).
        placed: (N,) bool, ids that are new or moved.
    """

    clusters: list[str]
    similarities: np.ndarray
    centres: dict[str, np.ndarray]
    placed: np.ndarray
    new: int
    moved: int


@dataclass(frozen=True)
class ClusterDrift:
    """Distance of a cluster from its state at its last prompt.

    Attributes:
        moved_share: Share of its members, past and present, that joined or left since.
        centre_shift: 1 - cosine of its centres then and now.
    """

    cluster_id: str
    size: int
    moved_share: float
    centre_shift: float

    def exceeds(self, limits: DriftConfig) -> bool:
        """Whether the cluster needs a new answer."""
        return self.moved_share > limits.moved_share or self.centre_shift > limits.centre_shift


def place(
    ids: Sequence[str], vectors: np.ndarray, earlier: Earlier, min_similarity: float | None
) -> Placement:
    """Put new ids into the nearest cluster, and move those whose nearest centre changed.

    An id whose nearest centre is unchanged stays, even if it belongs to another cluster: density
    methods place many ids elsewhere, and that is not drift. Clusters are split to keep
    `min_similarity`, the lowest cosine of an id to its centre. Vectors (N, d) have unit length.
    """
    names = sorted(set(earlier.clusters))
    label_of = {name: label for label, name in enumerate(names)}
    labels_before = np.array([label_of[name] for name in earlier.clusters])
    centres = assignment_of(earlier.vectors, labels_before, len(names)).centres
    row_of = {key: row for row, key in enumerate(earlier.ids)}
    rows_before = np.array([row_of.get(key, -1) for key in ids])
    before = np.where(rows_before >= 0, labels_before[rows_before], -1)
    new = np.flatnonzero(rows_before < 0)

    known = np.flatnonzero(rows_before >= 0)
    earlier_vectors = earlier.vectors[rows_before[known]]
    changed = np.einsum("nd,nd->n", vectors[known], earlier_vectors) < _SAME
    nearest_before = nearest(earlier_vectors[changed], centres)[0]
    nearest_now = nearest(vectors[known[changed]], centres)[0]
    to_place = np.concatenate([new, known[changed][nearest_now != nearest_before]])
    labels = before.copy()
    labels[to_place] = nearest(vectors[to_place], centres)[0]

    # Clusters without members disappear; split ones get new names.
    alive, packed = np.unique(labels, return_inverse=True)
    kept = [names[label] for label in alive]
    assignment = assignment_of(vectors, packed, len(kept))
    if min_similarity is not None:
        assignment = split_until_close(vectors, assignment, min_similarity)
    prefix = names[0][0]
    last = max(int(name.removeprefix(prefix)) for name in {*names, *earlier.centres})
    added = len(assignment.centres) - len(kept)
    kept += [f"{prefix}{last + number:04d}" for number in range(1, added + 1)]
    placed = labels != before
    return Placement(
        clusters=[kept[label] for label in assignment.labels.tolist()],
        similarities=assignment.similarities,
        centres=dict(zip(kept, assignment.centres, strict=True)),
        placed=placed,
        new=len(new),
        moved=int(placed.sum()) - len(new),
    )


def drift(ids: Sequence[str], placement: Placement, earlier: Earlier) -> list[ClusterDrift]:
    """Drift of each cluster since its last prompt, by cluster id; all of it without a prompt."""
    drifts = []
    for cluster, members in sorted(members_of(ids, placement.clusters).items()):
        asked = earlier.asked.get(cluster, set())
        moved = 1.0 - len(members & asked) / len(members | asked)
        centre = earlier.centres.get(cluster)
        shift = 1.0 if centre is None else 1.0 - float(centre @ placement.centres[cluster])
        drifts.append(ClusterDrift(cluster, len(members), moved, max(shift, 0.0)))
    return drifts


def members_of(ids: Sequence[str], clusters: Sequence[str]) -> dict[str, set[str]]:
    """Members of each cluster."""
    members: dict[str, set[str]] = {}
    for key, cluster in zip(ids, clusters, strict=True):
        members.setdefault(cluster, set()).add(key)
    return members
