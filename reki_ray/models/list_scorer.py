"""The order of a list of items by a trained reranker, the same offline and online."""

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
    """Orders lists of items.

    A reranker is trained on lists of K items in the order of their popularity: places beyond K
    have no embedding, and sums over longer lists differ. So a longer list is split into chunks of
    K items, and each is ordered by itself, from popularity as in training. An item moves within
    its chunk alone: the click model's best K stay the best K.

    Args:
        inputs: Its catalogue, with the augmented vectors of this reranker's HEIN.
    """

    def __init__(self, bundle: RerankBundle, inputs: CatalogueInputs) -> None:
        self.bundle = bundle
        self._inputs = inputs
        counts = np.array([0] * FIRST_OWN_ROW + list(bundle.features.item_counts))
        self._popularity = counts[self._inputs.ids]

    def order(self, user: UserInput, item_ids: Sequence[str]) -> list[int]:
        """Indices of N items, the best one first.

        Args:
            user: With the augmented vector of this reranker's HEIN.
            item_ids: Items, best guess first; they may be outside the catalogue.

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
        chunk = np.arange(len(item_ids)) // self.bundle.architecture.list_size
        order: list[int] = np.lexsort((-scores, chunk)).tolist()
        return order

    def score(self, user: UserInput, item_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits (N,) of N items, comparable within a chunk alone; arguments as of `order`.

        The model sees equally popular items in the order of `item_ids`.
        """
        count, size = len(item_ids), self.bundle.architecture.list_size
        if not count:
            return np.zeros(0, dtype=np.float32)
        rows = np.array(self._inputs.rows(item_ids))
        chunk, place = np.divmod(np.arange(count), size)
        # lexsort is stable, and chunks keep their places.
        order = np.lexsort((-self._popularity[rows], chunk))
        lists = np.full((chunk[-1] + 1, size), PADDING)  # (W, K)
        lists[chunk, place] = rows[order]
        logits = np.empty(count, dtype=np.float32)
        logits[order] = self._logits(user, torch.from_numpy(lists))[chunk, place]
        return logits

    def _logits(self, user: UserInput, lists: torch.Tensor) -> npt.NDArray[np.float32]:
        """Of W lists (W, K) of one user."""
        inputs, count = self._inputs, len(lists)
        with torch.inference_mode():
            h_user, h_items = inputs.augmented_users([user]), inputs.augmented
            output = self.bundle.model.output(
                items=inputs.items,
                targets=lists,
                history=History(*(row.expand(count, -1) for row in inputs.histories([user]))),
                profile=inputs.profiles([user]).expand(count, -1, -1),
                h_users=None if h_user is None else h_user.expand(count, -1),
                h_items=None if h_items is None else h_items[lists],
            )
        scores: npt.NDArray[np.float32] = output.logits.numpy()
        return scores
