"""Inputs and outputs of every conventional recommendation model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class BackboneInputs:
    """Embedded features of B samples.

    Args:
        users: Profile fields (B, F, E); F is 0 for a model without profile.
        target: Item to score (B, E).
        history: Past interactions, oldest first (B, L, E), zeros at padding.
        mask: True at real past interactions (B, L).
        augmented: Augmented vectors of user and item (B, 2, q); None without knowledge.

    Example::

        inputs = BackboneInputs(
            users=torch.randn(4, 2, 8),
            target=torch.randn(4, 8),
            history=torch.randn(4, 6, 8),
            mask=torch.ones(4, 6, dtype=torch.bool),
            augmented=torch.randn(4, 2, 8),
        )
    """

    users: Tensor
    target: Tensor
    history: Tensor
    mask: Tensor
    augmented: Tensor | None


class Output(NamedTuple):
    """Logits (B,) of B samples, and a scalar that training adds to its loss, if any."""

    logits: Tensor
    auxiliary: Tensor | None = None


class Backbone(Protocol):
    """A conventional recommendation model over embedded features.

    After training, a sample's logit depends on nothing else in the batch.
    """

    def __call__(self, inputs: BackboneInputs) -> Output:
        """Logits, and the model's own loss if it has one."""
        ...
