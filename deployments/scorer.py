"""Deployment `Scorer`: the served model over the catalogue."""

from __future__ import annotations

from typing import cast

import torch

from deployments.messages import Scores, UserRecord
from reki_ray.models.scoring import HistoryEvent, UserInput
from reki_ray.schema import Source
from reki_ray.store.versions import StoreVersion, VersionStore


class VersionScorer:
    """Scores with the model and the item vectors of one opened version.

    Args:
        version: The opened version.

    Raises:
        StoreError: Model and vectors do not fit together.
    """

    def __init__(self, version: StoreVersion) -> None:
        self._version = version
        self._scorer = version.load_scorer()

    def score(self, user: UserRecord, candidates: list[str]) -> Scores:
        """Probabilities of candidates, in their order.

        Args:
            user: What is known of the user.
            candidates: Item ids, also unknown ones.
        """
        # A rolling update mixes versions for a moment; another model's vector means nothing.
        fits = user.store_version == self._version.name
        vector = user.vector if fits else None
        if vector is None and self._version.users is not None:
            vector = self._version.users.fallback
        profile = user.profile
        history = [
            HistoryEvent(*event)
            for event in zip(profile.item_ids, profile.ratings, profile.timestamps, strict=True)
        ]
        scores = self._scorer.score(UserInput(profile.attributes, history, vector), candidates)
        manifest = self._version.manifest
        return Scores(
            scores=scores.tolist(),
            sources=self._sources(candidates),
            user_source=user.source if fits else "fallback",
            degraded=not fits,
            variant=manifest.arm,
            model_version=manifest.model_fingerprint[:12],
            store_version=self._version.name,
        )

    def _sources(self, candidates: list[str]) -> list[Source]:
        if self._version.items is not None:
            return cast(list[Source], self._version.items.sources(candidates))
        # Without vectors the source tells whether the catalogue knows the item.
        known = self._version.catalogue.known(candidates)
        return ["individual" if is_known else "fallback" for is_known in known]


class Scorer:
    """Serves a `VersionScorer`.

    Args:
        publish_root: Folder of the versions.
        version: Number of the version.

    Raises:
        StoreError: The version is missing or damaged, or its parts do not fit together.
    """

    def __init__(self, publish_root: str, version: int) -> None:
        # A request's matrices are small: more threads only wait for each other.
        torch.set_num_threads(1)
        self._scorer = VersionScorer(VersionStore(publish_root).open(version))

    async def score(self, user: UserRecord, candidates: list[str]) -> Scores:
        """See `VersionScorer.score`."""
        return self._scorer.score(user, candidates)
