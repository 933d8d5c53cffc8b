"""DeepFM (Guo et al., IJCAI 2017, arXiv 1703.04247) and xDeepFM (Lian et al., KDD 2018, arXiv
1803.05170)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.layers import MLP, stack_fields
from reki_ray.models.inputs import BackboneInputs, Output


def factorization_machine(fields: Tensor) -> Tensor:
    """Sum (B,) of the products of all pairs of fields (B, M, E), sum_i<j e_i . e_j."""
    return 0.5 * (fields.sum(dim=1).square() - fields.square().sum(dim=1)).sum(dim=1)


class DeepFM(nn.Module):
    """Linear part, factorization machine and MLP over the same M fields (see `count_fields`).

        y = w . x + sum_i<j e_i . e_j + MLP(x),    x the fields side by side

    The linear part weighs embeddings: fields may hold many values, or none of a vocabulary.

    Example::

        model = DeepFM(fields=6, embedding_dim=8, mlp=(64, 32))
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    def __init__(
        self,
        fields: int,
        embedding_dim: int,
        *,
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = fields * embedding_dim
        self.linear = nn.Linear(width, 1)
        self.deep = MLP(width, mlp, dropout)
        self.last = nn.Linear(mlp[-1], 1, bias=False)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,)."""
        fields = stack_fields(inputs)
        x = fields.flatten(1)  # (B, M E)
        linear = self.linear(x) + self.last(self.deep(x))  # (B, 1)
        return Output(linear.squeeze(-1) + factorization_machine(fields))


class CIN(nn.Module):
    """Compressed interaction network (the paper's section 3.1), without activation.

        X^k_h = sum_i,j W^k,h_ij (X^k-1_i * X^0_j),    p^k_h = sum over the embedding of X^k_h

    Example::

        cin = CIN(fields=6, widths=(5, 4))
        assert cin(torch.randn(4, 6, 8)).shape == (4, 9)
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
    """Linear part, compressed interaction network and MLP over M fields (see `count_fields`).

    Example::

        model = XDeepFM(fields=6, embedding_dim=8, cin=(50, 50))
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    def __init__(
        self,
        fields: int,
        embedding_dim: int,
        *,
        cin: tuple[int, ...] = (50, 50),
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = fields * embedding_dim
        self.cin = CIN(fields, cin)
        self.deep = MLP(width, mlp, dropout)
        self.last = nn.Linear(width + sum(cin) + mlp[-1], 1)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,)."""
        fields = stack_fields(inputs)
        x = fields.flatten(1)  # (B, M E)
        parts = torch.cat([x, self.cin(fields), self.deep(x)], dim=1)
        return Output(self.last(parts).squeeze(-1))
