"""DIN's attention and Dice against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reki_ray.models.backbones.din import DIN, TargetAttention
from reki_ray.models.backbones.layers import Dice
from tests.support.backbone_inputs import LENGTH, SIZE, Q, inputs


def test_history_of_padding_alone_gives_zero_interest() -> None:
    attention = TargetAttention(SIZE, (8, 4))
    empty = torch.zeros(3, LENGTH, dtype=torch.bool)
    for training in (False, True):
        attention.train(training)
        interest = attention(torch.randn(3, SIZE), torch.zeros(3, LENGTH, SIZE), empty)
        assert torch.equal(interest, torch.zeros(3, SIZE))


@pytest.mark.parametrize("width", [LENGTH, LENGTH + 1])
def test_attention_follows_the_published_formula(width: int) -> None:
    # A history as long as the layer is wide is multiplied otherwise than a shorter one.
    torch.manual_seed(0)
    attention = TargetAttention(SIZE, (width,)).eval()
    given = inputs(4)
    t = given.target.unsqueeze(1).expand(-1, LENGTH, -1)
    h = given.history
    x = attention.first(torch.cat([h, t, h - t, h * t], dim=-1))
    weights = attention.layers[0](attention.dices[0](x)) * given.mask.unsqueeze(-1)
    torch.testing.assert_close(
        attention(given.target, h, given.mask), (weights * h).sum(dim=1), atol=1e-6, rtol=1e-5
    )


def test_dice_uses_batch_statistics_in_training_and_running_ones_in_evaluation() -> None:
    dice = Dice(3)
    x = torch.randn(1000, 3) * 2 + 5
    trained = dice(x)
    expected = x * torch.sigmoid((x - x.mean(0)) / x.std(0, correction=0))  # alpha is 0
    torch.testing.assert_close(trained, expected, atol=1e-3, rtol=1e-3)
    for _ in range(200):
        dice(x)
    torch.testing.assert_close(dice.eval()(x[:1]), expected[:1], atol=1e-2, rtol=1e-2)


def test_zeroed_augmented_vectors_leave_the_logits_unchanged() -> None:
    torch.manual_seed(0)
    din = DIN(SIZE, user_fields=2, augmented_dim=Q, mlp=(16, 8), dropout=0.0)
    plain = DIN(SIZE, user_fields=2, mlp=(16, 8), dropout=0.0)
    weights = {k: v for k, v in din.state_dict().items() if "knowledge" not in k}
    plain.load_state_dict(weights)
    given = inputs(8)
    zeroed = replace(given, augmented=torch.zeros(8, 2, Q))
    for training in (False, True):
        din.train(training)
        plain.train(training)
        without = plain(replace(given, augmented=None)).logits
        torch.testing.assert_close(din(zeroed).logits, without)
        assert not torch.allclose(din(given).logits, without)


@pytest.mark.parametrize("real", [0, 1])
def test_too_few_rows_use_the_running_averages_and_leave_them(real: int) -> None:
    torch.manual_seed(0)
    dice = Dice(SIZE).train()
    dice(torch.randn(50, SIZE) * 3 + 1)
    mean, variance = dice.running_mean.clone(), dice.running_variance.clone()
    x = torch.randn(4, SIZE)
    mask = torch.arange(4) < real
    found = dice(x, mask)
    torch.testing.assert_close(found, dice.eval()(x))
    torch.testing.assert_close(dice.running_mean, mean)
    torch.testing.assert_close(dice.running_variance, variance)
