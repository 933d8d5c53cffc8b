"""Deep and cross networks: DCN (Wang et al., ADKDD 2017) and DCNv2 (Wang et al., WWW 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.layers import MLP, stack_fields
from reki_ray.models.inputs import BackboneInputs, Output


class CrossVector(nn.Module):
    """Cross layers of DCN: x_l+1 = x_0 (x_l . w_l) + b_l + x_l.

    Example::

        cross = CrossVector(width=48, layers=3)
        assert cross(torch.randn(4, 48)).shape == (4, 48)
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.init.normal_(torch.empty(width), std=width**-0.5) for _ in range(layers)
        )
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(layers))

    def forward(self, first: Tensor) -> Tensor:
        """Crossed x (B, width) of x_0 (B, width)."""
        x = first
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = first * (x @ weight).unsqueeze(-1) + bias + x
        return x


class CrossMatrix(nn.Module):
    """Cross layers of DCNv2: x_l+1 = x_0 * (W_l x_l + b_l) + x_l.

    Example::

        cross = CrossMatrix(width=48, layers=3)
        assert cross(torch.randn(4, 48)).shape == (4, 48)
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, first: Tensor) -> Tensor:
        """Crossed x (B, width) of x_0 (B, width)."""
        x = first
        for layer in self.layers:
            x = torch.addcmul(x, first, layer(x))
        return x


class _DeepAndCross(nn.Module):
    """Cross layers and an MLP side by side over M fields (see `count_fields`), then a layer."""

    cross_type: ClassVar[type[CrossVector] | type[CrossMatrix]]

    def __init__(
        self,
        fields: int,
        embedding_dim: int,
        *,
        cross_layers: int = 3,
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = fields * embedding_dim
        self.cross = self.cross_type(width, cross_layers)
        self.deep = MLP(width, mlp, dropout)
        self.last = nn.Linear(width + mlp[-1], 1)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,)."""
        x = stack_fields(inputs).flatten(1)  # (B, M E)
        both = torch.cat([self.cross(x), self.deep(x)], dim=1)
        return Output(self.last(both).squeeze(-1))


class DCNv1(_DeepAndCross):
    """Deep and cross network, parallel structure, with a vector per cross layer.

    Example::

        model = DCNv1(fields=6, embedding_dim=8, cross_layers=3)
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    cross_type = CrossVector


class DCNv2(_DeepAndCross):
    """Deep and cross network, parallel structure, with a matrix per cross layer.

    Example::

        model = DCNv2(fields=6, embedding_dim=8, cross_layers=3)
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    cross_type = CrossMatrix
