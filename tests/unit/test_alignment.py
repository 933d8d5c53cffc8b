"""Alignment of the shared experts with id embeddings."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from reki_ray.config import HeinConfig
from reki_ray.models.alignment import TEMPERATURE, Alignment


def test_loss_is_cross_entropy_of_cosines_against_the_same_item() -> None:
    torch.manual_seed(0)
    alignment = Alignment(3, 4)
    z, e = torch.randn(5, 3), torch.randn(5, 4)
    projected = z @ alignment.projection.weight.T
    cosines = torch.stack(
        [torch.stack([nn.functional.cosine_similarity(a, b, dim=0) for b in e]) for a in projected]
    )
    scaled = (cosines / TEMPERATURE).exp()
    expected = -(scaled.diagonal() / scaled.sum(dim=1)).log().mean()
    torch.testing.assert_close(alignment(z, e), expected)


def test_gradient_reaches_knowledge_and_spares_the_embeddings() -> None:
    torch.manual_seed(0)
    z, e = torch.randn(5, 3, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    Alignment(3, 4)(z, e).backward()
    assert z.grad is not None
    assert e.grad is None


def test_alignment_without_shared_experts_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind mlp has none"):
        HeinConfig(kind="mlp", alignment_weight=0.1)
