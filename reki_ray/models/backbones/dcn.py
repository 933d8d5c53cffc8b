"""Deep and cross networks: DCN (Wang et al., ADKDD 2017) and DCNv2 (Wang et al., WWW 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from reki_ray.config import NetworkConfig
from reki_ray.models.backbones.layers import MLP, count_fields, stack_fields
from reki_ray.models.backbones.protocol import BackboneInputs, Output


class CrossVector(nn.Module):
    """Cross layers of DCN: x_l+1 = x_0 (x_l . w_l) + b_l + x_l.

    Args:
        width: Length of x.
        layers: Number of layers.
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

    Args:
        width: Length of x.
        layers: Number of layers.
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
    """Cross layers and an MLP side by side over all fields, and one linear layer over both.

    Args:
        config: Sizes.
        user_fields: Number F of profile fields.
        augmented: Length q = E of an augmented vector; 0 builds the network without knowledge.
    """

    cross_layers: ClassVar[type[CrossVector] | type[CrossMatrix]]

    def __init__(self, config: NetworkConfig, user_fields: int, augmented: int) -> None:
        super().__init__()
        width = count_fields(user_fields, augmented) * config.embedding
        self.cross = self.cross_layers(width, config.cross_layers)
        self.deep = MLP(width, config)
        self.last = nn.Linear(width + config.mlp[-1], 1)

    def forward(self, inputs: BackboneInputs) -> Output:
        """See `Backbone`."""
        x = stack_fields(inputs).flatten(1)  # (B, M E)
        both = torch.cat([self.cross(x), self.deep(x)], dim=1)
        return Output(self.last(both).squeeze(-1))


class DCNv1(_DeepAndCross):
    """Deep and cross network, parallel structure; its cross layers have a vector each."""

    cross_layers = CrossVector


class DCNv2(_DeepAndCross):
    """Deep and cross network, parallel structure; its cross layers have a matrix each."""

    cross_layers = CrossMatrix
