"""Checks that a version's weights, vectors and scores are finite.

Training that has diverged leaves NaN behind, checksums of which are as good as any. A version that
holds them is neither published nor promoted nor served.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from reki_ray.errors import NotFiniteError
from reki_ray.schema import VECTOR
from reki_ray.store.manifest import NO_MODEL, RETRIEVAL_FOLDER
from reki_ray.store.tables import Profile
from reki_ray.store.version import StoreVersion

if TYPE_CHECKING:  # torch is slow to import, and the lookup does without it
    from reki_ray.models.artifact import Vectors
    from reki_ray.models.candidate_scorer import CandidateScorer, UserInput

TODO: Final = (
    "Stay with an older version. Train again with a lower train.learning_rate, then publish."
)
_ITEMS: Final = 64
_USERS: Final = 8
_VALUES_A_STEP: Final = 1 << 22
_LARGEST: Final = 1e18
"""The square of a larger weight is not finite."""


def require_sound(version: StoreVersion) -> None:
    """Refuse a version whose weights, vectors or scores are not finite; all vectors are read.

    Raises:
        NotFiniteError: They are not.
        StoreError: Model and vectors do not fit together.
    """
    for side, vector in version.manifest.fallback.items():
        if not np.isfinite(vector).all():
            raise _not_finite(f"the values of the fallback vector of {side}", version.folder)
    for folder, manifest in version.layers:
        for name in manifest.files:
            path = folder / name
            if path.suffix == ".safetensors":
                _require_weights(path, masks=path.parent.name != RETRIEVAL_FOLDER)
            elif path.suffix == ".arrow":
                _require_vectors(path)
    if version.manifest.model_fingerprint == NO_MODEL:
        return
    require_finite_scores(version, version.load_scorer(version.catalogue.first(_ITEMS)))
    _require_finite_orders(version)


def require_finite_scores(version: StoreVersion, scorer: CandidateScorer) -> None:
    """Score some of a version's own users and items, which also sets up what later scores reuse.

    Raises:
        NotFiniteError: A score is not finite.
    """
    items = [item.item_id for item in version.catalogue.first(_ITEMS)]
    questions = [(user, [*items, ""]) for user in _users(version)]
    for scores in scorer.score_batch(questions):
        if not np.isfinite(scores).all():
            raise _not_finite(f"the scores of {version.name}", version.folder)


def _require_finite_orders(version: StoreVersion) -> None:
    if version.manifest.reranker is None:
        return
    from reki_ray.store.reranker import VersionReranker  # see above

    items = version.catalogue.first(_ITEMS)
    reranker = VersionReranker(version, version.manifest.reranker, items)
    ids = [*(item.item_id for item in items), ""]
    for known in _profiles(version):
        if not np.isfinite(reranker.scorer.score(reranker.user_input(*known), ids)).all():
            raise _not_finite(f"the reranker's scores of {version.name}", version.folder)


def _users(version: StoreVersion) -> Sequence[UserInput]:
    from reki_ray.models.candidate_scorer import HistoryEvent, UserInput  # see above

    return [
        UserInput(
            profile.attributes,
            [HistoryEvent(*event) for event in profile.latest(len(profile.item_ids))],
            vector,
        )
        for _, profile, vector in _profiles(version)
    ]


def _profiles(version: StoreVersion) -> Iterator[tuple[str, Profile, Vectors | None]]:
    """Id, profile and vector of some users, and of one whom the version does not know."""
    ids = [*version.profiles.ids(_USERS), ""]
    vectors = [None] * len(ids) if version.users is None else version.users.lookup(ids)[0]
    for user_id, vector in zip(ids, vectors, strict=True):
        yield user_id, version.profile(user_id) or Profile(None, (), (), ()), vector


def _require_weights(path: Path, *, masks: bool) -> None:
    from safetensors.torch import load_file

    for name, weights in load_file(path).items():
        # Minus infinity is how masks are written; towers have none, and scale their vectors.
        sizes = weights if masks else weights.abs()
        if weights.is_floating_point() and not (sizes < _LARGEST).all():
            raise _not_finite(f"the weights {name}", path)


def _require_vectors(path: Path) -> None:
    rows = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if VECTOR not in rows.column_names:
        return
    for chunk in rows.column(VECTOR).chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=True)
        for start in range(0, len(values), _VALUES_A_STEP):
            if not np.isfinite(values[start : start + _VALUES_A_STEP]).all():
                raise _not_finite("the vectors", path)


def _not_finite(what: str, where: Path) -> NotFiniteError:
    return NotFiniteError(f"{what} are not all finite numbers", where=str(where), todo=TODO)
