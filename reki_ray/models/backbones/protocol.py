"""What every conventional recommendation model gets and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class BackboneInputs:
    """Embedded features of B samples.

    Args:
        users: Profile fields (B, F, E); F is 0 where the model sees no profile.
        target: Item to be scored (B, E).
        history: Past interactions (B, L, E), zeros at padding.
        mask: True at real past interactions (B, L).
        augmented: Augmented vectors of user and item (B, 2, q); None without knowledge.
    """

    users: Tensor
    target: Tensor
    history: Tensor
    mask: Tensor
    augmented: Tensor | None


class Backbone(Protocol):
    """A conventional recommendation model over embedded features.

    With `augmented` all zeros the logits must equal those of the same network without
    knowledge, bit by bit.
    """

    def __call__(self, inputs: BackboneInputs) -> Tensor:
        """Logits (B,)."""
        ...
