"""Random inputs of a reranker, with real and padded candidates and interactions."""

from __future__ import annotations

from dataclasses import fields

import torch

from reki_ray.config import NetworkConfig, RerankNetworkConfig
from reki_ray.models.rerankers import RerankerSizes, RerankInputs

SIZE, CANDIDATES, LENGTH, FIELDS, Q = 8, 5, 6, 2, 4
SIZES = RerankerSizes(
    network=NetworkConfig(embedding=SIZE, mlp=(16, 8), dropout=0.0),
    reranker=RerankNetworkConfig(hidden=12, heads=2, layers=2, feed_forward=10, inducing=3),
    user_fields=FIELDS,
    augmented=Q,
    list_size=CANDIDATES,
)


def inputs(lists: int, seed: int = 0, *, augmented: bool = True) -> RerankInputs:
    """Inputs of this many lists; lists are unequally long, histories have holes."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, CANDIDATES + 1, (lists, 1), generator=generator)
    mask = torch.arange(CANDIDATES) < lengths
    history_mask = torch.rand(lists, LENGTH, generator=generator) < 0.7
    history = torch.randn(lists, LENGTH, SIZE, generator=generator)
    candidates = torch.randn(lists, CANDIDATES, SIZE, generator=generator)
    h_items = torch.randn(lists, CANDIDATES, Q, generator=generator)
    return RerankInputs(
        users=torch.randn(lists, FIELDS, SIZE, generator=generator),
        candidates=candidates * mask.unsqueeze(-1),
        mask=mask,
        history=history * history_mask.unsqueeze(-1),
        history_mask=history_mask,
        augmented_user=torch.randn(lists, Q, generator=generator) if augmented else None,
        augmented_items=h_items if augmented else None,
    )


def whole(lists: int, seed: int = 0) -> RerankInputs:
    """The same with no padding among the candidates."""
    given = inputs(lists, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    candidates = torch.randn(given.candidates.shape, generator=generator)
    return take(given, candidates=candidates, mask=torch.ones_like(given.mask))


def take(
    given: RerankInputs, order: list[int] | None = None, **changed: torch.Tensor
) -> RerankInputs:
    """The lists at these places, some inputs changed."""
    tensors = {field.name: getattr(given, field.name) for field in fields(RerankInputs)}
    tensors.update(changed)
    if order is not None:
        tensors = {name: None if t is None else t[order] for name, t in tensors.items()}
    return RerankInputs(**tensors)


def reorder(given: RerankInputs, order: list[int]) -> RerankInputs:
    """The same lists with their candidates in another order."""
    assert given.augmented_items is not None
    return take(
        given,
        candidates=given.candidates[:, order],
        mask=given.mask[:, order],
        augmented_items=given.augmented_items[:, order],
    )
