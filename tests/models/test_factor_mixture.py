"""Knowledge by factor: gates, and what is not known of an id."""

from __future__ import annotations

import torch
from torch import nn

from reki_ray.models.knowledge_input import FactorMixture, KnowledgeInput

R = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))


def test_all_known_factors_count_alike_at_first() -> None:
    known = torch.tensor([[True, True, True], [True, False, True]] + [[True] * 3] * 3)
    mixed = FactorMixture(3, 4)(R, known)
    torch.testing.assert_close(mixed[0], R[0].mean(dim=0))
    torch.testing.assert_close(mixed[1], (R[1, 0] + R[1, 2]) / 2)


def test_gates_are_a_softmax_over_the_known_factors() -> None:
    mixture = FactorMixture(3, 4)
    nn.init.normal_(mixture.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(mixture.bias, generator=torch.Generator().manual_seed(2))
    known = torch.tensor([[True, False, True]] * 4 + [[False] * 3])
    gates = mixture.gates(R, known)
    for row in range(4):
        scores = torch.stack([mixture.weight[k] @ R[row, k] + mixture.bias[k] for k in (0, 2)])
        torch.testing.assert_close(gates[row, [0, 2]], torch.softmax(scores, dim=0))
    assert not gates[:, 1].any()
    assert not gates[4].any()


def test_reader_mixes_what_is_there_and_gates_learn() -> None:
    reader = KnowledgeInput(3, 4, scaling="standardise")
    r = R.clone()
    r[2, 1] = 0
    r[4] = 0
    flat = r.view(5, 12)
    reader.fit(flat)
    found = reader(flat)
    scaled = reader.scaling(r)
    torch.testing.assert_close(found[2], (scaled[2, 0] + scaled[2, 2]) / 2)
    assert not found[4].any()
    found.square().sum().backward()
    assert reader.mixture is not None
    assert reader.mixture.weight.grad is not None
    assert reader.mixture.weight.grad.any()


def test_factors_are_mixed_after_their_principal_components_are_taken() -> None:
    reader = KnowledgeInput(3, 4, scaling="principal", components=2)
    reader.fit(R.view(5, 12))
    assert reader(R.view(5, 12)).shape == (5, 2) == (5, reader.output)


def test_one_factor_has_no_gates() -> None:
    reader = KnowledgeInput(1, 4, scaling="length")
    assert not list(reader.parameters())
    torch.testing.assert_close(reader(R[:, 0]), R[:, 0] * 2)
