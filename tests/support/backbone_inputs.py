"""Random inputs of a backbone, with real and padded interactions."""

from __future__ import annotations

import torch

from reki_ray.config import NetworkConfig
from reki_ray.models.backbones import BackboneInputs

SIZE, LENGTH, FIELDS = 8, 6, 2
Q = SIZE
"""Models of interactions between fields want augmented vectors of the embeddings' length."""
CONFIG = NetworkConfig(
    embedding=SIZE,
    attention=(8, 4),
    mlp=(16, 8),
    dropout=0.0,
    cin=(5, 4),
    heads=2,
    head_size=4,
)


def inputs(samples: int, seed: int = 0, *, augmented: bool = True) -> BackboneInputs:
    """Inputs of this many samples; each history has holes, as in a batch of unequal ones."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(samples, LENGTH, generator=generator) < 0.7
    return BackboneInputs(
        users=torch.randn(samples, FIELDS, SIZE, generator=generator),
        target=torch.randn(samples, SIZE, generator=generator),
        history=torch.randn(samples, LENGTH, SIZE, generator=generator) * mask.unsqueeze(-1),
        mask=mask,
        augmented=torch.randn(samples, 2, Q, generator=generator) if augmented else None,
    )


def rows(given: BackboneInputs, order: list[int]) -> BackboneInputs:
    """The samples at these places."""
    return BackboneInputs(
        users=given.users[order],
        target=given.target[order],
        history=given.history[order],
        mask=given.mask[order],
        augmented=None if given.augmented is None else given.augmented[order],
    )
