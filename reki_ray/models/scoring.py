"""The one path from a request to scores, used offline and online."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reki_ray.errors import StoreError
from reki_ray.models.bundle import ModelBundle, Vectors
from reki_ray.models.embedded_model import History, Items
from reki_ray.models.fields import NO_TIME, PADDING, EncodedItems, encode_gaps

_UNKNOWN_ITEM = 1
"""Row of an item that the catalogue does not hold; row 0 is padding."""


@dataclass(frozen=True)
class HistoryEvent:
    """One past interaction.

    Args:
        item_id: The item.
        rating: Its rating; None where there is none.
        timestamp: Seconds since the epoch; None where it is not known.
    """

    item_id: str
    rating: float | None = None
    timestamp: int | None = None


@dataclass(frozen=True)
class UserInput:
    """What is known of the user of a request.

    Args:
        attributes: Profile values by attribute; None for a user without profile.
        history: Past interactions, oldest first; the model takes the last L.
        augmented: Augmented vector h_u (q,); None only for a model without knowledge.
    """

    attributes: Mapping[str, Sequence[str]] | None
    history: Sequence[HistoryEvent]
    augmented: Vectors | None = None


class CandidateScorer:
    """Scores candidates of one user at a time.

    Item vectors of the catalogue are computed once, here. Scores are deterministic, and a
    candidate's score does not depend on the other candidates.

    Args:
        bundle: Trained model.
        item_ids: Catalogue of I items.
        item_attributes: Their attributes.
        augmented_items: Augmented vectors h_i (I, q); None for a model without knowledge.
        augmented_item_fallback: h_i (q,) of items outside the catalogue; None for a model
            without knowledge.
        augment_user: Makes h_u (1, q) of what requests bring, (1, d), where that is a
            representation; None where it is h_u itself.

    Raises:
        StoreError: The augmented vectors do not fit the model or the catalogue.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        item_ids: Sequence[str],
        item_attributes: Sequence[Mapping[str, Sequence[str]] | None],
        augmented_items: Vectors | None,
        augmented_item_fallback: Vectors | None,
        *,
        augment_user: Callable[[Vectors], Vectors] | None = None,
    ) -> None:
        self.bundle = bundle
        self._augment_user = augment_user
        self._rows = {item: row for row, item in enumerate(item_ids, _UNKNOWN_ITEM + 1)}
        # The ids of padding and of the unknown item are empty: no item has them.
        encoded = bundle.features.encode_items(["", "", *item_ids], [None, None, *item_attributes])
        encoded.ids[0] = PADDING
        self._augmented = self._stack(augmented_items, augmented_item_fallback, len(item_ids))
        self._items = _embed(bundle, encoded, self._augmented)  # I + 2 items

    def score(self, user: UserInput, candidates: Sequence[str]) -> npt.NDArray[np.float32]:
        """Click probabilities (C,) of C candidates, in their order.

        Args:
            user: Profile, history and augmented vector.
            candidates: Item ids; one that the catalogue does not hold is scored with the
                unknown item's vector and the fallback.

        Raises:
            StoreError: The user's augmented vector does not fit the model.
        """
        if not candidates:
            return np.zeros(0, dtype=np.float32)
        rows = torch.tensor([self._rows.get(item, _UNKNOWN_ITEM) for item in candidates])
        history = self._history(user.history)
        count = len(candidates)
        with torch.inference_mode():
            profile = self.bundle.model.profile(self._profile(user.attributes), 1)
            output = self.bundle.model.output(
                items=self._items,
                targets=rows,
                history=History(*(rows.expand(count, -1) for rows in history)),
                profile=profile.expand(count, -1, -1),
                augmented=self._pairs(user.augmented, rows),
            )
            scores: npt.NDArray[np.float32] = torch.sigmoid(output.logits).numpy()
        return scores

    def _history(self, events: Sequence[HistoryEvent]) -> History:
        length = self.bundle.history
        latest = events[-length:]
        rows = np.full(length, PADDING, dtype=np.int32)
        ratings = np.full(length, PADDING, dtype=np.int32)
        times = np.full(length, NO_TIME, dtype=np.int64)
        if latest:
            start = length - len(latest)
            rows[start:] = [self._rows.get(event.item_id, _UNKNOWN_ITEM) for event in latest]
            given = [np.nan if event.rating is None else event.rating for event in latest]
            ratings[start:] = self.bundle.features.encode_ratings(np.array(given))
            times[start:] = [NO_TIME if e.timestamp is None else e.timestamp for e in latest]
        found = (rows, ratings, encode_gaps(times))
        return History(*(torch.from_numpy(one)[None] for one in found))

    def _profile(self, attributes: Mapping[str, Sequence[str]] | None) -> dict[str, Tensor]:
        encoded = self.bundle.features.encode_users([attributes])
        return {name: torch.from_numpy(rows) for name, rows in encoded.items()}

    def _pairs(self, augmented: Vectors | None, rows: Tensor) -> Tensor | None:
        if self._augmented is None:
            return None
        if augmented is not None and self._augment_user is not None:
            augmented = self._augment_user(augmented[None])[0]
        self._check(augmented, (self.bundle.augmented_dim,), "the user's augmented vector")
        h_items = self._augmented.index_select(0, rows)  # (C, q)
        h_user = torch.tensor(augmented, dtype=torch.float32).expand_as(h_items)
        return torch.stack([h_user, h_items], dim=1)  # (C, 2, q)

    def _stack(
        self, augmented: Vectors | None, fallback: Vectors | None, count: int
    ) -> Tensor | None:
        if not self.bundle.uses_knowledge:
            return None
        dimension = self.bundle.augmented_dim
        self._check(augmented, (count, dimension), "the items' augmented vectors")
        self._check(fallback, (dimension,), "the fallback of augmented item vectors")
        assert augmented is not None
        assert fallback is not None
        padding = np.zeros((1, dimension))
        rows = np.concatenate([padding, fallback[None], augmented])
        return torch.tensor(rows, dtype=torch.float32)

    def _check(self, vectors: Vectors | None, shape: tuple[int, ...], what: str) -> None:
        found = None if vectors is None else vectors.shape
        if found != shape:
            raise StoreError(
                f"{what} have shape {found}, the model needs {shape}",
                where=f"model of arm {self.bundle.arm}",
                todo="Publish vectors and model together, from one workspace.",
            )


def _embed(bundle: ModelBundle, items: EncodedItems, augmented: Tensor | None) -> Items:
    attributes = {name: torch.from_numpy(rows) for name, rows in items.attributes.items()}
    with torch.inference_mode():
        return bundle.model.embed_items(torch.from_numpy(items.ids), attributes, augmented)
