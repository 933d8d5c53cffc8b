"""What representations go through before the adaptor: layers want inputs of unit size.

Encoders give vectors of length 1 that share a large mean; TF-LLMER (2025) reports that such
differences in scale slow down training, and takes them out first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reki_ray.config import HeinScaling

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
