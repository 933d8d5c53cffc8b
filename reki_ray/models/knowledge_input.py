"""What representations go through before the adaptor: layers want inputs of unit size.

Encoders give vectors of length 1 that share a large mean; TF-LLMER (2025) reports that such
differences in scale slow down training, and takes them out first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reki_ray.config import HeinConfig, HeinScaling


class KnowledgeReader(nn.Module):
    """Maps representations (N, K d) of one side to inputs (N, k) of HEIN.

    Args:
        factors: Number K of factors that lie side by side.
        dimension: Length d of each.
        config: What they go through first.

    Attributes:
        output: Length k.
    """

    def __init__(self, factors: int, dimension: int, config: HeinConfig) -> None:
        super().__init__()
        self.factors = factors
        self.dimension = dimension
        self.scaling = RepresentationScaling(dimension, config.scaling, config.components)
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

    Args:
        factors: Number K of factors.
        dimension: Length d of a factor's representation.
    """

    def __init__(self, factors: int, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(factors, dimension))  # all factors alike at first
        self.bias = nn.Parameter(torch.zeros(factors))

    def gates(self, r: Tensor, known: Tensor) -> Tensor:
        """Weight of each factor (N, K), of sum 1; zeros where nothing is known.

        Args:
            r: Representations (N, K, d).
            known: Which are known (N, K).
        """
        logits = torch.einsum("nkd,kd->nk", r, self.weight) + self.bias
        gates = torch.softmax(logits.masked_fill(~known, torch.finfo(r.dtype).min), dim=1)
        return gates * known

    def forward(self, r: Tensor, known: Tensor) -> Tensor:
        """Representations (N, d) from those by factor, arguments as for `gates`."""
        return torch.einsum("nk,nkd->nd", self.gates(r, known), r)


_SHRINKAGE = 1e-2

"""Share of the mean variance that is added to each: directions of no variance stay bounded."""


class RepresentationScaling(nn.Module):
    """Maps unit representations r (N, d) of one side to k components of about unit size.

        length       sqrt(d) r
        standardise  (r - mean) / standard deviation, component by component
        whiten       (r - mean) C^(-1/2), C the covariance: no two components are correlated
        principal    s V L^(-1/2), s the standardised r, V and L the largest k eigenvectors and
                     eigenvalues of their covariance: what representations share, without the rest

    Args:
        dimension: Length d.
        kind: Which of these.
        components: Most components that are kept of kind principal; all others keep d.

    Attributes:
        output: Length k.
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
        # Ascending order of the eigenvalues.
        values, vectors = torch.linalg.eigh(scaled.T @ scaled / len(rows))
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
    """What is added to each variance of centred representations (V, d)."""
    return _SHRINKAGE * centred.square().mean() + 1e-12
