"""From stored representations to what HEIN takes: scaled, of one length whatever the factors."""

from __future__ import annotations

from torch import Tensor, nn

from reki_ray.config import HeinConfig
from reki_ray.models.factor_mixture import FactorMixture
from reki_ray.models.representation_scaling import RepresentationScaling


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
