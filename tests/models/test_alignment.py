"""Alignment of the shared experts with id embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from reki_ray.config import GateConfig, HeinConfig, NetworkConfig
from reki_ray.models import base_model
from reki_ray.models.base_model import TEMPERATURE, Alignment, Architecture, KnowledgeVectors
from reki_ray.models.ctr_model import CTRModel
from reki_ray.models.features import FeatureSpace


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


def test_every_item_of_a_large_batch_is_aligned_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "MOST_ITEMS", 8)
    items = {f"m{k:03}": None for k in range(60)}
    features = FeatureSpace.build(items=items, users=[], ratings=np.zeros(0, np.float32))
    architecture = Architecture(
        backbone="din",
        network=NetworkConfig(embedding=4, attention=(4,), mlp=(4,)),
        hein=HeinConfig(hidden=4, output=4, alignment_weight=1.0),
        gate=GateConfig(),
        representation=5,
        id_dropout=0.0,
    )
    torch.manual_seed(0)
    model = CTRModel(architecture, features).train()
    ids = torch.arange(len(items) + 2)  # all rows, with padding and the unknown one
    knowledge = KnowledgeVectors(torch.randn(len(ids), 5), ids)

    def aligned(seed: int) -> set[int]:
        seen: list[torch.Tensor] = []

        def note(z: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
            seen.append(e)
            return z.sum()

        monkeypatch.setattr(model.alignment, "forward", note)
        torch.manual_seed(seed)
        assert model.misalignment(ids, ids.repeat(3), knowledge) is not None
        [embeddings] = seen
        own = model.items.ids.weight
        return {int((own == e).all(dim=1).nonzero()[0]) for e in embeddings}

    drawn = [aligned(seed) for seed in range(60)]
    assert {len(one) for one in drawn} == {8}
    assert set().union(*drawn) == set(range(2, len(ids)))  # not padding, not the unknown one
    assert aligned(7) == drawn[7]
