"""xDeepFM (Lian et al., KDD 2018, arXiv 1803.05170)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from reki_ray.config import NetworkConfig
from reki_ray.models.backbones.layers import MLP, count_fields, stack_fields
from reki_ray.models.backbones.protocol import BackboneInputs, Output


class CIN(nn.Module):
    """Compressed interaction network (the paper's section 3.1), without activation.

        X^k_h = sum_i,j W^k,h_ij (X^k-1_i * X^0_j),    p^k_h = sum over the embedding of X^k_h

    Args:
        fields: Number M of rows of X^0.
        widths: Rows H_k of each X^k.
    """

    def __init__(self, fields: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(a * fields, b, bias=False) for a, b in pairwise((fields, *widths))
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Pooled rows p of all layers (B, sum of H_k) for fields X^0 (B, M, E)."""
        first = fields.transpose(1, 2)  # (B, E, M)
        x, pooled = first, []
        for layer in self.layers:
            x = layer((x.unsqueeze(-1) * first.unsqueeze(-2)).flatten(2))  # (B, E, H_k)
            pooled.append(x.sum(dim=1))
        return torch.cat(pooled, dim=1)


class XDeepFM(nn.Module):
    """Linear part, compressed interaction network and MLP over the same fields.

    Args:
        config: Sizes.
        user_fields: Number F of profile fields.
        augmented: Length q = E of an augmented vector; 0 builds the network without knowledge.
    """

    def __init__(self, config: NetworkConfig, user_fields: int, augmented: int) -> None:
        super().__init__()
        fields = count_fields(user_fields, augmented)
        width = fields * config.embedding
        self.cin = CIN(fields, config.cin)
        self.deep = MLP(width, config)
        self.last = nn.Linear(width + sum(config.cin) + config.mlp[-1], 1)

    def forward(self, inputs: BackboneInputs) -> Output:
        """See `Backbone`."""
        fields = stack_fields(inputs)
        x = fields.flatten(1)  # (B, M E)
        parts = torch.cat([x, self.cin(fields), self.deep(x)], dim=1)
        return Output(self.last(parts).squeeze(-1))
