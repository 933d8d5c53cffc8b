"""Preparation of representations for the adaptor, whose layers want inputs of unit size.

Encoders give vectors of length 1 that share a large mean; TF-LLMER (2025) reports that such
differences in scale slow down training, and removes them first.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from reki_ray.config import HeinScaling

_SHRINKAGE: Final = 1e-2
"""Share of the mean variance added to each variance: bounds directions without variance."""


class KnowledgeInput(nn.Module):
    """Maps representations (N, K d) of one side to inputs (N, k) of HEIN.

    Args:
        factors: Number K of factors, side by side in a representation.
        dimension: Length d of each.
        components: Largest k of scaling "principal".

    Attributes:
        output: Length k.

    Example::

        reader = KnowledgeInput(factors=2, dimension=8, scaling="principal", components=4)
        r = torch.randn(100, 16)
        reader.fit(r)
        assert reader(r).shape == (100, reader.output) == (100, 4)
    """

    def __init__(
        self,
        factors: int,
        dimension: int,
        *,
        scaling: HeinScaling = "standardise",
        components: int = 128,
    ) -> None:
        super().__init__()
        self.factors = factors
        self.dimension = dimension
        self.scaling = RepresentationScaling(dimension, scaling, components)
        self.output = self.scaling.output
        self.mixture = FactorMixture(factors, self.output) if factors > 1 else None

    def fit(self, r: Tensor) -> None:
        """Take mean and covariance from representations (V, K d), one of them not zero or K = 1."""
        parts = r.view(-1, self.dimension)
        self.scaling.fit(parts if self.mixture is None else parts[parts.any(dim=1)])

    def forward(self, r: Tensor) -> Tensor:
        """Inputs (N, k) of HEIN for representations (N, K d)."""
        if self.mixture is None:
            scaled: Tensor = self.scaling(r)
            return scaled
        parts = r.view(-1, self.factors, self.dimension)
        mixed: Tensor = self.mixture(self.scaling(parts), parts.any(dim=2))
        return mixed


class FactorMixture(nn.Module):
    """Weighted sum of the factors that are known of an id.

        r = sum_k g_k r_k,   g = softmax over the known factors of (w_k r_k + b_k)

    Example::

        mixture = FactorMixture(factors=3, dimension=8)
        known = torch.tensor([[True, True, False]])
        assert mixture(torch.randn(1, 3, 8), known).shape == (1, 8)
    """

    def __init__(self, factors: int, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(factors, dimension))  # equal weights at first
        self.bias = nn.Parameter(torch.zeros(factors))

    def gates(self, r: Tensor, known: Tensor) -> Tensor:
        """Weight of each factor (N, K), of sum 1; zeros where no factor is known.

        Of representations (N, K, d), and which of their factors are known (N, K).
        """
        logits = torch.einsum("nkd,kd->nk", r, self.weight) + self.bias
        gates = torch.softmax(logits.masked_fill(~known, torch.finfo(r.dtype).min), dim=1)
        return gates * known

    def forward(self, r: Tensor, known: Tensor) -> Tensor:
        """Representations (N, d) from those by factor, arguments as for `gates`."""
        return torch.einsum("nk,nkd->nd", self.gates(r, known), r)


class RepresentationScaling(nn.Module):
    """Maps unit representations r (N, d) of one side to k components of about unit size.

        length       sqrt(d) r
        standardise  (r - mean) / standard deviation, component by component
        whiten       (r - mean) C^(-1/2), C the covariance: no two components are correlated
        principal    s V L^(-1/2), s the standardised r, V and L the largest k eigenvectors and
                     eigenvalues of their covariance: what representations share, without the rest

    Args:
        components: Largest k of kind principal; all others keep d.

    Attributes:
        output: Length k.

    Example::

        scaling = RepresentationScaling(8, "standardise")
        r = nn.functional.normalize(torch.randn(1000, 8))
        scaling.fit(r)
        assert scaling(r).mean().abs() < 1e-4
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dimension: int, kind: HeinScaling, components: int = 128) -> None:
        super().__init__()
        self.kind = kind
        self.factor = math.sqrt(dimension)
        self.output = min(dimension, components) if kind == "principal" else dimension
        if kind != "length":
            self.register_buffer("mean", torch.zeros(dimension))
            square = kind in ("whiten", "principal")
            kept = torch.eye(dimension, self.output) if square else torch.ones(dimension)
            self.register_buffer("matrix", kept)

    def fit(self, r: Tensor) -> None:
        """Take mean and covariance from representations (V, d), V >= 1."""
        if self.kind == "length":
            return
        rows = r.double()
        self.mean.copy_(rows.mean(dim=0))
        centred = rows - rows.mean(dim=0)
        deviation = (centred.square().mean(dim=0) + _floor(centred)).rsqrt()
        if self.kind == "standardise":
            self.matrix.copy_(deviation)
            return
        scale = deviation if self.kind == "principal" else torch.ones_like(deviation)
        scaled = centred * scale
        values, vectors = torch.linalg.eigh(scaled.T @ scaled / len(rows))  # ascending
        shrunk = (values.clamp_min(0) + _floor(scaled)).rsqrt()
        if self.kind == "whiten":
            self.matrix.copy_(vectors @ shrunk.diag() @ vectors.T)
            return
        largest = slice(len(values) - self.output, None)
        self.matrix.copy_(scale.diag() @ vectors[:, largest] @ shrunk[largest].diag())

    def forward(self, r: Tensor) -> Tensor:
        """Scaled representations (N, k)."""
        if self.kind == "length":
            return r * self.factor
        if self.kind == "standardise":
            return (r - self.mean) * self.matrix
        return (r - self.mean) @ self.matrix


def _floor(centred: Tensor) -> Tensor:
    return _SHRINKAGE * centred.square().mean() + 1e-12
