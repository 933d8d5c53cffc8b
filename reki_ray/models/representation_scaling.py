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
    """Maps unit representations r (N, d) of one side to components of about unit size.

        length       sqrt(d) r
        standardise  (r - mean) / standard deviation, component by component
        whiten       (r - mean) C^(-1/2), C the covariance: no two components are correlated

    Args:
        dimension: Length d.
        kind: Which of these.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dimension: int, kind: HeinScaling) -> None:
        super().__init__()
        self.kind = kind
        self.factor = math.sqrt(dimension)
        if kind != "length":
            self.register_buffer("mean", torch.zeros(dimension))
            kept = torch.eye(dimension) if kind == "whiten" else torch.ones(dimension)
            self.register_buffer("matrix", kept)

    def fit(self, r: Tensor) -> None:
        """Take mean and covariance from representations (V, d), V >= 1."""
        if self.kind == "length":
            return
        rows = r.double()
        self.mean.copy_(rows.mean(dim=0))
        centred = rows - rows.mean(dim=0)
        covariance = centred.T @ centred / len(rows)
        floor = _SHRINKAGE * covariance.diagonal().mean() + 1e-12
        if self.kind == "standardise":
            self.matrix.copy_((covariance.diagonal() + floor).rsqrt())
            return
        values, vectors = torch.linalg.eigh(covariance)
        self.matrix.copy_(vectors @ (values.clamp_min(0) + floor).rsqrt().diag() @ vectors.T)

    def forward(self, r: Tensor) -> Tensor:
        """Scaled representations (N, d)."""
        if self.kind == "length":
            return r * self.factor
        if self.kind == "standardise":
            return (r - self.mean) * self.matrix
        return (r - self.mean) @ self.matrix
