"""AutoInt (Song et al., CIKM 2019, arXiv 1810.11921), with an MLP beside it (AutoInt+)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.config import NetworkConfig
from reki_ray.models.backbones.layers import MLP, count_fields, stack_fields
from reki_ray.models.backbones.protocol import BackboneInputs, Output


class InteractingLayer(nn.Module):
    """Multi-head self-attention between fields with a residual (the paper's section 4.4).

        e_m' = relu(sum over heads, side by side, of softmax_k(Q e_m . K e_k) V e_k + W e_m)

    Args:
        size: Length of a field.
        heads: Number of heads.
        head_size: Length of a field in a head.
    """

    def __init__(self, size: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(size, 3 * heads * head_size, bias=False)
        self.residual = nn.Linear(size, heads * head_size, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Fields (B, M, heads head_size) of fields (B, M, size)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, M, head_size)
            for part in self.projections(fields).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.relu(mixed.transpose(1, 2).flatten(2) + self.residual(fields))


class AutoInt(nn.Module):
    """Interacting layers over the fields, and an MLP beside them.

    Args:
        config: Sizes.
        user_fields: Number F of profile fields.
        augmented: Length q = E of an augmented vector; 0 builds the network without knowledge.
    """

    def __init__(self, config: NetworkConfig, user_fields: int, augmented: int) -> None:
        super().__init__()
        fields = count_fields(user_fields, augmented)
        width = config.heads * config.head_size
        self.interacting = nn.Sequential(
            *(
                InteractingLayer(
                    width if layer else config.embedding, config.heads, config.head_size
                )
                for layer in range(config.interaction_layers)
            )
        )
        self.deep = MLP(fields * config.embedding, config)
        self.last = nn.Linear(fields * width + config.mlp[-1], 1)

    def forward(self, inputs: BackboneInputs) -> Output:
        """See `Backbone`."""
        fields = stack_fields(inputs)
        parts = [self.interacting(fields).flatten(1), self.deep(fields.flatten(1))]
        return Output(self.last(torch.cat(parts, dim=1)).squeeze(-1))
