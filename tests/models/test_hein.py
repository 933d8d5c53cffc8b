from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from reki_ray.models.hein import HEIN, ExpertBank

Array = npt.NDArray[np.float64]

SHARED, DEDICATED, OUTPUT = 2, 3, 4


@pytest.fixture
def hein() -> HEIN:
    torch.manual_seed(0)
    return HEIN(
        6, hidden=5, output=OUTPUT, shared_experts=SHARED, dedicated_experts=DEDICATED
    ).double()


def representations(rows: int) -> torch.Tensor:
    return torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expert(bank: ExpertBank, number: int, r: Array) -> Array:
    """One expert, written out: relu(relu(r W1 + b1) W2 + b2)."""
    state = {name: value.numpy() for name, value in bank.state_dict().items()}
    width = state["weight"].shape[1]
    block = slice(number * width, (number + 1) * width)
    hidden = np.maximum(r @ state["hidden.weight"][block].T + state["hidden.bias"][block], 0)
    output: Array = np.maximum(hidden @ state["weight"][number] + state["bias"][number], 0)
    return output


def by_formula(hein: HEIN, r: Array, gate: nn.Linear, dedicated: ExpertBank) -> Array:
    logits = r @ gate.weight.detach().numpy().T + gate.bias.detach().numpy()
    gates = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total = np.zeros((len(r), OUTPUT))
    for k in range(SHARED):
        total += gates[:, [k]] * expert(hein.shared, k, r)
    for k in range(DEDICATED):
        total += gates[:, [SHARED + k]] * expert(dedicated, k, r)
    return total


def test_both_sides_follow_the_published_formula(hein: HEIN) -> None:
    r = representations(7)
    h_users, h_items = hein(r, r)
    users = by_formula(hein, r.numpy(), hein.user_gate, hein.user_experts)
    items = by_formula(hein, r.numpy(), hein.item_gate, hein.item_experts)
    np.testing.assert_allclose(h_users.detach().numpy(), users, atol=1e-12)
    np.testing.assert_allclose(h_items.detach().numpy(), items, atol=1e-12)


def test_small_case_calculated_by_hand() -> None:
    hein = HEIN(1, hidden=1, output=1, shared_experts=1, dedicated_experts=1)
    values = {
        "shared.hidden.weight": 2.0,  # S(r) = relu(3 relu(2 r) + 1)
        "shared.weight": 3.0,
        "shared.bias": 1.0,
        "user_experts.hidden.weight": 1.0,  # P(r) = relu(relu(r) - 1)
        "user_experts.weight": 1.0,
        "user_experts.bias": -1.0,
    }
    with torch.no_grad():
        for name, parameter in hein.named_parameters():
            parameter.fill_(values.get(name, 0.0))
        hein.user_gate.bias[0] = float(np.log(3.0))  # gates 3/4 and 1/4
    h = hein.users(torch.tensor([[2.0], [-1.0]]))
    # r = 2: 3/4 * 13 + 1/4 * 1; r = -1: 3/4 * 1 + 1/4 * 0
    torch.testing.assert_close(h, torch.tensor([[10.0], [0.75]]))


def test_shared_experts_serve_both_sides_and_dedicated_ones_a_single_side(hein: HEIN) -> None:
    r = representations(5)
    before = [h.detach().clone() for h in hein(r, r)]
    with torch.no_grad():
        hein.shared.bias.add_(1.0)
    changed = hein(r, r)
    assert not torch.allclose(changed[0], before[0])
    assert not torch.allclose(changed[1], before[1])
    with torch.no_grad():
        hein.shared.bias.sub_(1.0)
        hein.user_experts.bias.add_(1.0)
    changed = hein(r, r)
    assert not torch.allclose(changed[0], before[0])
    torch.testing.assert_close(changed[1], before[1])


def test_gates_sum_to_one(hein: HEIN) -> None:
    with torch.no_grad():
        for bank in (hein.shared, hein.user_experts):
            bank.weight.zero_()
            bank.bias.fill_(1.0)  # every expert answers ones
    torch.testing.assert_close(
        hein.users(representations(9)), torch.ones(9, OUTPUT, dtype=torch.float64)
    )


def test_gradient_reaches_every_expert(hein: HEIN) -> None:
    h_users, h_items = hein(representations(64), representations(64))
    (h_users.sum() + h_items.square().sum()).backward()
    for bank in (hein.shared, hein.user_experts, hein.item_experts):
        assert bank.weight.grad is not None
        assert (bank.weight.grad.abs().sum(dim=(1, 2)) > 0).all()
    for gate in (hein.user_gate, hein.item_gate):
        assert gate.weight.grad is not None
        assert (gate.weight.grad.abs().sum(dim=1) > 0).all()
