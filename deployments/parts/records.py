"""Records that deployments exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reki_ray.schema import Source
from reki_ray.store.tables import Profile

NO_PROFILE = Profile(attributes=None, item_ids=(), ratings=(), timestamps=())

Lack = Literal["", "vectors_unavailable", "vectors_lost"]
"""Why a record has no vector: the vector server does not answer, or was emptied."""


@dataclass(frozen=True)
class UserRecord:
    """What the lookup knows of a user.

    Args:
        profile: Attributes and past interactions.
        vector: Augmented vector h_u (q,); None if the model takes none or the lookup failed.
        source: Where the vector comes from.
        store_version: Version of the vector; empty without.
        user_id: Set for the retriever and the reranker.
        met: Items of recent events, also beyond the profile: not to be recommended.
        lack: Why there is no vector; empty if there is nothing to report.
    """

    profile: Profile = NO_PROFILE
    vector: npt.NDArray[np.float32] | None = None
    source: Source = "fallback"
    store_version: str = ""
    user_id: str = ""
    met: tuple[str, ...] = ()
    lack: Lack = ""

    def __reduce__(self) -> tuple[Any, ...]:
        # As bytes: Ray ships arrays out of band, which costs more than the rest of the record.
        vector = None if self.vector is None else self.vector.tobytes()
        rest = (self.source, self.store_version, self.user_id, self.met, self.lack)
        return _received, (self.profile, vector, *rest)


def _received(profile: Profile, vector: bytes | None, *rest: Any) -> UserRecord:
    return UserRecord(profile, None if vector is None else np.frombuffer(vector, np.float32), *rest)


@dataclass(frozen=True)
class Scores:
    """Scores and sources in the order of the candidates."""

    scores: list[float]
    sources: list[Source]
    user_source: Source
    degraded: bool
    variant: str
    model_version: str
    store_version: str
