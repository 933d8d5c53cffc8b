"""What every reranker is made from, gets and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from reki_ray.config import NetworkConfig, RerankNetworkConfig


@dataclass(frozen=True)
class RerankerSizes:
    """What a reranker is built from.

    Args:
        network: Embedding size E, final MLP, dropout.
        reranker: Sizes of the layers over a list.
        user_fields: Number F of profile fields.
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
    """Embedded features of B lists; each holds at least one candidate.

    Args:
        users: Profile fields (B, F, E); F is 0 where the model sees no profile.
        candidates: Items to be put in order, in the initial order (B, K, E).
        mask: True at real candidates (B, K).
        history: Past interactions, oldest first (B, L, E), zeros at padding.
        history_mask: True at real past interactions (B, L).
        augmented_user: Augmented vector h_u (B, q); None without knowledge.
        augmented_items: Augmented vectors h_i of the candidates (B, K, q); None without knowledge.
    """

    users: Tensor
    candidates: Tensor
    mask: Tensor
    history: Tensor
    history_mask: Tensor
    augmented_user: Tensor | None
    augmented_items: Tensor | None


class Reranker(Protocol):
    """A network that scores the candidates of a list together.

    A score depends on the user, their history, the knowledge and the real candidates of its own
    list; on neither padding nor other lists, once training is over.
    """

    def __call__(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K), a larger one for a better place; those at padding have no meaning."""
        ...
