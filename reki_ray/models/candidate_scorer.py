"""The path from a request to scores, the same offline and online."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reki_ray.errors import StoreError
from reki_ray.models.artifact import Bundle, Vectors
from reki_ray.models.base_model import History, Items
from reki_ray.models.features import NO_TIME, PADDING, Rows, encode_gaps

Spread = Callable[[Tensor], Tensor]

_UNKNOWN_ITEM = 1
"""Row of an item that the catalogue does not hold; row 0 is padding."""

FIRST_ITEM = 2
"""Row of the catalogue's first item."""


Prestored = Literal["h", "r"]
"""Kind of the prestored vectors: augmented vectors h, or representations r."""


class HistoryEvent(NamedTuple):
    """One past interaction.

    Attributes:
        timestamp: Seconds since the epoch, if known.
    """

    item_id: str
    rating: float | None = None
    timestamp: int | None = None


@dataclass(frozen=True)
class UserInput:
    """The user of a request.

    Args:
        attributes: Profile values by attribute; None for a user without profile.
        history: Past interactions, oldest first; the model takes the last L.
        augmented: Augmented vector h_u (q,), or representation r_u (K d,) for a scorer of
            prestored representations; None only for a model without knowledge.
    """

    attributes: Mapping[str, Sequence[str]] | None
    history: Sequence[HistoryEvent]
    augmented: Vectors | None = None


class CatalogueInputs:
    """Model inputs of a catalogue, computed once here, and of users, computed per request.

    Args:
        augmented_items: Augmented vectors h_i (I, q); None for a model without knowledge.
        augmented_item_fallback: h_i (q,) of items outside the catalogue; None for a model
            without knowledge.
        prestored: With r, the vectors of items and users are representations r (K d), which HEIN
            augments: the items' here, a user's per request.

    Raises:
        StoreError: The augmented vectors do not fit the model or the catalogue.
    """

    def __init__(
        self,
        bundle: Bundle[Any, Any],
        item_ids: Sequence[str],
        item_attributes: Sequence[Mapping[str, Sequence[str]] | None],
        augmented_items: Vectors | None,
        augmented_item_fallback: Vectors | None,
        *,
        prestored: Prestored = "h",
    ) -> None:
        self.bundle = bundle
        self._prestored = prestored
        self._user_width = bundle.augmented_dim
        if prestored == "r" and bundle.uses_knowledge:
            self._user_width = bundle.architecture.width("users")
            if augmented_items is not None:
                augmented_items = bundle.augment_items(augmented_items)
            if augmented_item_fallback is not None:
                augmented_item_fallback = bundle.augment_items(augmented_item_fallback[None])[0]
        self._rows = {item: row for row, item in enumerate(item_ids, FIRST_ITEM)}
        # Padding and the unknown item have the empty id, which no item has.
        encoded = bundle.features.encode_items(["", "", *item_ids], [None, None, *item_attributes])
        encoded.ids[0] = PADDING
        self.ids = encoded.ids
        """Rows of the items' ids in the vocabulary (I + 2,)."""
        self.augmented = self._stack(augmented_items, augmented_item_fallback, len(item_ids))
        """h_i (I + 2, q); None in a model without knowledge."""
        with torch.inference_mode():
            ids, attributes = torch.from_numpy(encoded.ids), _tensors(encoded.attributes)
            self.items: Items = bundle.model.embed_items(ids, attributes, self.augmented)
        """I + 2 items: padding, the unknown one, and the catalogue."""

    def rows(self, item_ids: Sequence[str]) -> list[int]:
        """Rows of items in `items`; the unknown item's row for ids outside the catalogue."""
        return [self._rows.get(item, _UNKNOWN_ITEM) for item in item_ids]

    def histories(self, users: Sequence[UserInput]) -> History:
        """Histories of B users (B, L)."""
        length = self.bundle.history
        shape = (len(users), length)
        rows = np.full(shape, PADDING, dtype=np.int32)
        ratings = np.full(shape, PADDING, dtype=np.int32)
        times = np.full(shape, NO_TIME, dtype=np.int64)
        for place, user in enumerate(users):
            latest = user.history[-length:]
            if not latest:
                continue
            start = length - len(latest)
            items, stars, at = zip(*latest, strict=True)
            rows[place, start:] = self.rows(items)
            known = np.array([np.nan if rating is None else rating for rating in stars])
            ratings[place, start:] = self.bundle.features.encode_ratings(known)
            times[place, start:] = [NO_TIME if time is None else time for time in at]
        return History(
            torch.from_numpy(rows), torch.from_numpy(ratings), torch.from_numpy(encode_gaps(times))
        )

    def profiles(self, users: Sequence[UserInput]) -> Tensor:
        """Profile fields (B, F, E) of B users."""
        encoded = self.bundle.features.encode_users([user.attributes for user in users])
        profile: Tensor = self.bundle.model.profile(_tensors(encoded), len(users))
        return profile

    def augmented_users(self, users: Sequence[UserInput]) -> Tensor | None:
        """h_u (B, q) of B users; None in a model without knowledge.

        Raises:
            StoreError: A user's augmented vector does not fit the model.
        """
        if self.augmented is None:
            return None
        of_users: list[Vectors] = []
        for user in users:
            self._check(user.augmented, (self._user_width,), "the user's augmented vector")
            assert user.augmented is not None
            of_users.append(user.augmented)
        vectors = np.stack(of_users).astype(np.float32, copy=False)  # (B, q) or (B, K d)
        if self._prestored == "r":
            vectors = self.bundle.augment_users(vectors)
        return torch.from_numpy(vectors)

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
        actual = None if vectors is None else vectors.shape
        if actual != shape:
            raise StoreError(
                f"{what} have shape {actual}, the model needs {shape}",
                where=f"model of arm {self.bundle.arm}",
                todo="Publish vectors and model together, from one workspace.",
            )


class CandidateScorer(CatalogueInputs):
    """Scores candidates of users by a model of clicks.

    Scores are deterministic, and a candidate's score does not depend on the other candidates.
    """

    @property
    def history(self) -> int:
        """Number L of latest interactions that the model takes."""
        return self.bundle.history

    def score(self, user: UserInput, candidates: Sequence[str]) -> npt.NDArray[np.float32]:
        """Click probabilities (C,) of C candidates, in their order.

        A candidate outside the catalogue gets the unknown item's vector and the fallback.

        Raises:
            StoreError: The user's augmented vector does not fit the model.
        """
        return self.score_batch([(user, candidates)])[0]

    def score_batch(
        self, questions: Sequence[tuple[UserInput, Sequence[str]]]
    ) -> list[npt.NDArray[np.float32]]:
        """Click probabilities (C,) of each user's candidates, for B users in one forward pass.

        Raises:
            StoreError: A user's augmented vector does not fit the model.
        """
        counts = [len(candidates) for _, candidates in questions]
        if not sum(counts):
            return [np.zeros(0, dtype=np.float32) for _ in questions]
        users = [user for user, _ in questions]
        rows = torch.tensor([row for _, items in questions for row in self.rows(items)])  # (N,)
        spread = _spread(counts)
        with torch.inference_mode():
            h_users, h_items = self.augmented_users(users), self.augmented
            output = self.bundle.model.output(
                items=self.items,
                targets=rows,
                history=History(*(spread(column) for column in self.histories(users))),
                profile=spread(self.profiles(users)),
                h_users=None if h_users is None else spread(h_users),
                h_items=None if h_items is None else h_items.index_select(0, rows),
            )
            scores = torch.sigmoid(output.logits).numpy()
        return np.split(scores, np.cumsum(counts)[:-1])


def _spread(counts: Sequence[int]) -> Spread:
    """Repeat row b of a tensor (B, ...) for each of user b's candidates: (N, ...)."""
    if len(counts) == 1:  # a view: nothing is copied
        return lambda rows: rows.expand(counts[0], *rows.shape[1:])
    owners = torch.repeat_interleave(torch.tensor(counts))
    return lambda rows: rows.index_select(0, owners)


def _tensors(fields: Mapping[str, Rows]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(rows) for name, rows in fields.items()}
