"""What every conventional recommendation model gets and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class BackboneInputs:
    """Embedded features of B samples.

    Args:
        users: Profile fields (B, F, E); F is 0 where the model sees no profile.
        target: Item to be scored (B, E).
        history: Past interactions, oldest first (B, L, E), zeros at padding.
        mask: True at real past interactions (B, L).
        augmented: Augmented vectors of user and item (B, 2, q); None without knowledge.
    """

    users: Tensor
    target: Tensor
    history: Tensor
    mask: Tensor
    augmented: Tensor | None


class Output(NamedTuple):
    """What a network computes of B samples.

    Attributes:
        logits: (B,).
        auxiliary: Scalar that training adds to its loss; None where there is none.
    """

    logits: Tensor
    auxiliary: Tensor | None = None


class Backbone(Protocol):
    """A conventional recommendation model over embedded features.

    A sample's logit depends on nothing else in the batch once training is over.
    """

    def __call__(self, inputs: BackboneInputs) -> Output:
        """Logits, and a loss of its own where the model has one."""
        ...
