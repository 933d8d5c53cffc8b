"""Ablations of HEIN, and the scaling before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

from reki_ray.config import HeinConfig, HeinScaling
from reki_ray.models.hein import Adaptor, SharedMixture, TwoTowers
from reki_ray.models.knowledge_input import RepresentationScaling
from reki_ray.models.registry import build_adaptor

D = 6
OUTPUT = 4


def adaptor_of(kind: str) -> Adaptor:
    settings = {"shared_experts": 1, "dedicated_experts": 2, "hidden": 5, "output": OUTPUT}
    torch.manual_seed(0)
    return build_adaptor(D, HeinConfig.model_validate({"kind": kind, **settings}))


def representations(rows: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=generator)
    r = 1.0 + torch.randn(rows, D, generator=generator) @ mixing
    return nn.functional.normalize(r)


@pytest.mark.parametrize("kind", ["hein", "mixture", "mlp", "linear"])
def test_every_adaptor_gives_both_sides_and_each_row_alone(kind: str) -> None:
    adaptor = adaptor_of(kind)
    r = representations()
    for side in (adaptor.users, adaptor.items):
        assert side(r).shape == (7, OUTPUT)
        torch.testing.assert_close(side(r)[2:3], side(r[2:3]))
    (adaptor.users(r).sum() + adaptor.items(r).sum()).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in adaptor.parameters())


def test_one_mixture_serves_both_sides_with_the_same_experts() -> None:
    mixture, r = adaptor_of("mixture"), representations()
    assert isinstance(mixture, SharedMixture)
    torch.testing.assert_close(mixture.users(r), mixture.items(r))
    gates = torch.softmax(mixture.gate(r), dim=1)
    expected = sum(gates[:, [k]] * mixture.bank(r)[k] for k in range(3))
    torch.testing.assert_close(mixture.users(r), expected)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_towers_share_nothing(kind: str) -> None:
    towers, r = adaptor_of(kind), representations()
    assert isinstance(towers, TwoTowers)
    assert not torch.allclose(towers.users(r), towers.items(r))


def test_length_scaling_gives_components_of_unit_size() -> None:
    scaled = RepresentationScaling(D, "length")(representations())
    torch.testing.assert_close(scaled.square().mean(dim=1), torch.ones(7))


@pytest.mark.parametrize("kind", ["standardise", "whiten"])
def test_fitted_scaling_takes_out_mean_and_variance(kind: HeinScaling) -> None:
    r = representations(5000)
    scaling = RepresentationScaling(D, kind)
    scaling.fit(r)
    scaled = scaling(r)
    covariance = scaled.T @ scaled / len(r)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(D), atol=1e-4, rtol=0)
    if kind == "standardise":
        covariance = covariance.diagonal().diag()
    torch.testing.assert_close(covariance, torch.eye(D), atol=0.25, rtol=0)


def test_principal_scaling_keeps_the_components_of_scikit_learns_pca() -> None:
    r = representations(500)
    scaling = RepresentationScaling(D, "principal", components=3)
    scaling.fit(r)
    found = scaling(r)
    assert found.shape == (500, 3) == (500, scaling.output)
    whitened = PCA(3, whiten=True).fit_transform(StandardScaler().fit_transform(r.numpy()))
    # The sign and the order of components are free.
    correlation = np.abs(np.corrcoef(found.T.numpy(), whitened.T)[:3, 3:])
    np.testing.assert_allclose(correlation[::-1], np.eye(3), atol=0.02)
    torch.testing.assert_close(found.T @ found / 500, torch.eye(3), atol=0.05, rtol=0)


def test_principal_scaling_of_few_components_keeps_them_all() -> None:
    assert RepresentationScaling(D, "principal", components=128).output == D


@pytest.mark.parametrize("kind", ["standardise", "whiten", "principal"])
def test_representations_without_variance_stay_bounded(kind: HeinScaling) -> None:
    scaling = RepresentationScaling(D, kind)
    scaling.fit(representations(1).expand(4, -1))
    assert torch.isfinite(scaling(representations())).all()
