"""What backbones and rerankers take and give, and the sizes that they are built of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from reki_ray.config import NetworkConfig, RerankNetworkConfig


@dataclass(frozen=True)
class BackboneInputs:
    """Embedded features of B samples, which a backbone maps to an `Output`.

    After training, a sample's logit depends on nothing else in the batch.

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
    """Logits (B,), of lists (B, K), and a scalar that training adds to its loss, if any."""

    logits: Tensor
    auxiliary: Tensor | None = None


class InputDims(NamedTuple):
    """Embedding size E, number F of profile fields, and length q of h; 0 without knowledge."""

    embedding: int
    user_fields: int = 0
    augmented: int = 0


@dataclass(frozen=True)
class RerankerSizes:
    """Argument of a user's own reranker class: all sizes of the configuration.

    Args:
        augmented: Length q of an augmented vector; 0 builds the network without knowledge.
        list_size: Largest number of candidates of a training list.
    """

    network: NetworkConfig
    reranker: RerankNetworkConfig
    user_fields: int
    augmented: int
    list_size: int


@dataclass(frozen=True)
class RerankInputs:
    """Embedded features of B lists, which a reranker maps to logits (B, K), larger for better.

    Each list holds at least one candidate; logits at padding are meaningless. After training, a
    score depends on the user, the history, the knowledge and the real candidates of its own list.

    Args:
        users: Profile fields (B, F, E); F is 0 for a model without profile.
        candidates: Items in the initial order (B, K, E).
        mask: True at real candidates (B, K).
        history: Past interactions, oldest first (B, L, E), zeros at padding.
        history_mask: True at real past interactions (B, L).
        augmented_user: Augmented vector h_u (B, q); None without knowledge.
        augmented_items: Augmented vectors h_i of the candidates (B, K, q); None without knowledge.

    Example::

        inputs = RerankInputs(
            users=torch.randn(4, 2, 8),
            candidates=torch.randn(4, 5, 8),
            mask=torch.ones(4, 5, dtype=torch.bool),
            history=torch.randn(4, 6, 8),
            history_mask=torch.ones(4, 6, dtype=torch.bool),
            augmented_user=torch.randn(4, 8),
            augmented_items=torch.randn(4, 5, 8),
        )
    """

    users: Tensor
    candidates: Tensor
    mask: Tensor
    history: Tensor
    history_mask: Tensor
    augmented_user: Tensor | None
    augmented_items: Tensor | None
