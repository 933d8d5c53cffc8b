"""No network waits for its device in a training step, as a condition on a tensor does.

A tensor of the device `meta` has no values: whatever asks for one fails.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reki_ray.config.network import BACKBONES
from reki_ray.config.rerank import RERANKERS
from reki_ray.models.backbones.layers import Dice
from reki_ray.models.registry import build_backbone, build_reranker
from tests.support import backbone_inputs, reranker_inputs

META = torch.device("meta")


def moved(value: Any) -> Any:
    """A dataclass of tensors on the device without values."""
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{k: v.to(META) for k, v in parts.items() if isinstance(v, Tensor)})


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name: str) -> None:
    backbone = build_backbone(
        name,
        backbone_inputs.CONFIG,
        user_fields=backbone_inputs.FIELDS,
        augmented=backbone_inputs.Q,
    )
    output = backbone.to(META).train()(moved(backbone_inputs.inputs(5)))
    assert output.logits.shape == (5,)


@pytest.mark.parametrize("name", RERANKERS)
def test_rerankers(name: str) -> None:
    reranker = build_reranker(name, reranker_inputs.SIZES).to(META).train()
    logits = reranker(moved(reranker_inputs.inputs(5)))
    assert logits.shape == (5, reranker_inputs.CANDIDATES)


def test_dice_of_a_single_row() -> None:
    assert Dice(4).to(META).train()(torch.empty(1, 4, device=META)).shape == (1, 4)
