"""AutoInt (Song et al., CIKM 2019, arXiv 1810.11921), with an MLP beside it (AutoInt+)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.layers import MLP, stack_fields
from reki_ray.models.inputs import BackboneInputs, Output


class InteractingLayer(nn.Module):
    """Multi-head self-attention between fields with a residual (the paper's section 4.4).

        e_m' = relu(sum over heads, side by side, of softmax_k(Q e_m . K e_k) V e_k + W e_m)

    Example::

        layer = InteractingLayer(size=8, heads=2, head_size=16)
        assert layer(torch.randn(4, 6, 8)).shape == (4, 6, 32)
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
    """Interacting layers over M fields (see `count_fields`), and an MLP beside them.

    Example::

        model = AutoInt(fields=6, embedding_dim=8, interaction_layers=2)
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    def __init__(
        self,
        fields: int,
        embedding_dim: int,
        *,
        interaction_layers: int = 3,
        heads: int = 1,
        head_size: int = 64,
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = heads * head_size
        self.interacting = nn.Sequential(
            *(
                InteractingLayer(width if layer else embedding_dim, heads, head_size)
                for layer in range(interaction_layers)
            )
        )
        self.deep = MLP(fields * embedding_dim, mlp, dropout)
        self.last = nn.Linear(fields * width + mlp[-1], 1)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,)."""
        fields = stack_fields(inputs)
        parts = [self.interacting(fields).flatten(1), self.deep(fields.flatten(1))]
        return Output(self.last(torch.cat(parts, dim=1)).squeeze(-1))
