"""The order of a list of items for a user, as a trained reranker gives it, offline and online."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from reki_ray.errors import NotFiniteError
from reki_ray.models.artifact import RerankBundle
from reki_ray.models.base_model import History
from reki_ray.models.candidate_scorer import CatalogueInputs, UserInput
from reki_ray.models.features import FIRST_OWN_ROW, PADDING


class ListScorer:
    """Puts lists of items in order.

    A reranker has learned lists of K items in the order of their popularity, and knows nothing of
    longer ones: places beyond K have no embedding, and sums over a list differ from those it saw.
    So a longer list is cut into stretches of K items, which are put in order each by itself, from
    popularity as in training. An item moves within its stretch alone: what the click model
    places among the best K stays there.

    Args:
        bundle: Trained reranker.
        inputs: Its catalogue; augmented vectors are those of its own HEIN.
    """

    def __init__(self, bundle: RerankBundle, inputs: CatalogueInputs) -> None:
        self.bundle = bundle
        self._inputs = inputs
        counts = np.array([0] * FIRST_OWN_ROW + list(bundle.features.item_counts))
        self._popularity = counts[self._inputs.ids]

    def order(self, user: UserInput, item_ids: Sequence[str]) -> list[int]:
        """Places of N items, the best one first.

        Args:
            user: Profile, history and augmented vector by the HEIN of this reranker.
            item_ids: Items, best guess first; also such as the catalogue does not hold.

        Raises:
            NotFiniteError: The model has no finite score for an item.
            StoreError: The user's augmented vector does not fit the model.
        """
        scores = self.score(user, item_ids)
        if not np.isfinite(scores).all():
            raise NotFiniteError(
                "the reranker has no finite scores for a list",
                where=f"reranker of arm {self.bundle.arm}",
                todo="Go back to an older version: `reki rollback`.",
            )
        stretch = np.arange(len(item_ids)) // self.bundle.architecture.list_size
        order: list[int] = np.lexsort((-scores, stretch)).tolist()
        return order

    def score(self, user: UserInput, item_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits (N,) of N items, which compare within a stretch alone.

        Args:
            user: As in `order`.
            item_ids: As in `order`; equally popular ones stand before the model as they do here.

        Raises:
            StoreError: The user's augmented vector does not fit the model.
        """
        count, size = len(item_ids), self.bundle.architecture.list_size
        if not count:
            return np.zeros(0, dtype=np.float32)
        found = np.array(self._inputs.rows(item_ids))
        stretch, place = np.divmod(np.arange(count), size)
        # lexsort is stable, and stretches keep their places.
        order = np.lexsort((-self._popularity[found], stretch))
        lists = np.full((stretch[-1] + 1, size), PADDING)  # (W, K)
        lists[stretch, place] = found[order]
        logits = np.empty(count, dtype=np.float32)
        logits[order] = self._logits(user, torch.from_numpy(lists))[stretch, place]
        return logits

    def _logits(self, user: UserInput, lists: torch.Tensor) -> npt.NDArray[np.float32]:
        """Of W lists (W, K) of one user."""
        inputs, count = self._inputs, len(lists)
        with torch.inference_mode():
            h_user, h_items = inputs.augmented_users([user]), inputs.augmented
            logits = self.bundle.model.output(
                items=inputs.items,
                candidates=lists,
                history=History(*(row.expand(count, -1) for row in inputs.histories([user]))),
                profile=inputs.profiles([user]).expand(count, -1, -1),
                augmented_user=None if h_user is None else h_user.expand(count, -1),
                augmented_items=None if h_items is None else h_items[lists],
            )
        scores: npt.NDArray[np.float32] = logits.numpy()
        return scores
