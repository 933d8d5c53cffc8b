"""Inputs of each experimental arm: the only place where arms differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from reki_ray.config import Arm, TrainConfig
from reki_ray.core.vectors import read_factor_vectors
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.schema import REPRESENTATIONS, SIDES, TEXT_REPRESENTATIONS, WHOLE_ANSWER, Side, Table


@dataclass(frozen=True)
class ArmInputs:
    """Inputs of an arm besides item ids, item attributes and labels.

    Args:
        full_history: Whether it sees `train.history` past interactions, or `train.base_history`.
        users: Representations of users; None with `items` set gives every user zeros.
        items: Representations of items; None is a model without knowledge.
        permuted: Whether representations are permuted among ids. Members of a cluster share a
            vector, so this permutes the assignment to clusters and keeps their sizes.
    """

    profile: bool = True
    full_history: bool = True
    users: Table | None = None
    items: Table | None = None
    permuted: bool = False

    @property
    def uses_knowledge(self) -> bool:
        """Whether augmented vectors enter the model."""
        return self.items is not None

    def history(self, config: TrainConfig) -> int:
        """Number of past interactions that the model sees."""
        return config.history if self.full_history else config.base_history


_KNOWLEDGE: Final = ArmInputs(users=REPRESENTATIONS["users"], items=REPRESENTATIONS["items"])

ARMS: Final[dict[Arm, ArmInputs]] = {
    "base": ArmInputs(profile=False, full_history=False),
    "fair_base": ArmInputs(),
    "history_text": ArmInputs(
        users=TEXT_REPRESENTATIONS["users"], items=TEXT_REPRESENTATIONS["items"]
    ),
    "title_text": ArmInputs(items=TEXT_REPRESENTATIONS["items"]),
    "reki_i": _KNOWLEDGE,
    "reki_c": _KNOWLEDGE,
    "reki_c_kmeans": _KNOWLEDGE,
    "reki_blend": _KNOWLEDGE,
    "imported": ArmInputs(items=REPRESENTATIONS["items"]),
    "reki_c_shuffled": ArmInputs(users=_KNOWLEDGE.users, items=_KNOWLEDGE.items, permuted=True),
}


@dataclass(frozen=True)
class SideVectors:
    """Representations of one side in the order of a list of ids.

    Args:
        vectors: Distinct rows (V, K d), of K factors side by side.
        rows: Row of every id (N,).
    """

    vectors: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    factors: tuple[str, ...] = (WHOLE_ANSWER,)

    @property
    def dimension(self) -> int:
        """Length d of a representation of one factor."""
        return int(self.vectors.shape[1]) // len(self.factors)

    def permuted(self, seed: int, side: Side) -> SideVectors:
        """The same vectors permuted among ids, reproducibly."""
        generator = np.random.default_rng([seed, SIDES.index(side)])
        return replace(self, rows=generator.permutation(self.rows))

    def gather(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Representations (n, K d) of n ids, given by their place in the list."""
        return self.vectors[self.rows[ids]]


@dataclass(frozen=True)
class Representations:
    """Representations of users and items."""

    users: SideVectors
    items: SideVectors

    def digest(self) -> str:
        """SHA-256 over all of them."""
        digest = hashlib.sha256()
        for side in (self.users, self.items):
            digest.update(np.ascontiguousarray(side.vectors).data)
            digest.update(np.ascontiguousarray(side.rows).data)
        return digest.hexdigest()


def read_representations(
    workspace: Workspace, arm: Arm, user_ids: Sequence[str], item_ids: Sequence[str]
) -> Representations | None:
    """Representations of an arm in the order of the ids, before `permute`; None without knowledge.

    Raises:
        DataError: A table is missing or damaged, or lacks an id.
    """
    inputs = ARMS[arm]
    if inputs.items is None:
        return None
    items = _read_side(workspace, inputs.items, item_ids)
    if inputs.users is None:
        zeros = np.zeros((1, items.dimension), dtype=np.float32)
        users = SideVectors(zeros, np.zeros(len(user_ids), dtype=np.int64))
    else:
        users = _read_side(workspace, inputs.users, user_ids)
    return Representations(users, items)


def permute(representations: Representations | None, arm: Arm, seed: int) -> Representations | None:
    """Representations as the run (arm, seed) sees them."""
    if representations is None or not ARMS[arm].permuted:
        return representations
    return Representations(
        representations.users.permuted(seed, "users"), representations.items.permuted(seed, "items")
    )


def _read_side(workspace: Workspace, table: Table, ids: Sequence[str]) -> SideVectors:
    known, factors, vectors, _ = read_factor_vectors(workspace.read_table(table))
    places = {key: row for row, key in enumerate(known)}
    missing = [key for key in ids if key not in places]
    if missing:
        raise DataError(
            f"{len(missing)} ids have no representation, among them {missing[0]!r}",
            where=workspace.path(table.path),
            todo="Run `reki encode --force encode`: it writes a row for every id.",
        )
    row_of: dict[bytes, int] = {}  # members of a cluster share a row
    first: list[int] = []
    rows = np.empty(len(ids), dtype=np.int64)
    for number, key in enumerate(ids):
        place = places[key]
        row = row_of.setdefault(vectors[place].tobytes(), len(first))
        if row == len(first):
            first.append(place)
        rows[number] = row
    return SideVectors(vectors[first], rows, factors)
