"""FiBiNET (Huang et al., RecSys 2019, arXiv 1905.09433)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.layers import MLP, stack_fields
from reki_ray.models.inputs import BackboneInputs, Output


class SENET(nn.Module):
    """Weighs fields by their importance (the paper's section 3.3).

        z_m = mean of e_m,    a = relu(W_2 relu(W_1 z)),    v_m = a_m e_m

    Example::

        senet = SENET(fields=6, reduction=3)
        assert senet(torch.randn(4, 6, 8)).shape == (4, 6, 8)
    """

    def __init__(self, fields: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, fields // reduction)
        self.squeeze = nn.Linear(fields, narrow, bias=False)
        self.excite = nn.Linear(narrow, fields, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Weighted fields (B, M, E) of fields (B, M, E)."""
        narrow = torch.relu(self.squeeze(fields.mean(dim=-1)))
        return torch.relu(self.excite(narrow)).unsqueeze(-1) * fields


class BilinearInteraction(nn.Module):
    """Products of all pairs of fields, p_ij = (e_i W_i) * e_j for i < j (type Field-Each).

    Example::

        bilinear = BilinearInteraction(fields=6, size=8)
        assert bilinear(torch.randn(4, 6, 8)).shape == (4, 15, 8)
    """

    first: Tensor
    second: Tensor

    def __init__(self, fields: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fields, size, size))
        nn.init.xavier_normal_(self.weight)
        pairs = torch.triu_indices(fields, fields, offset=1)
        self.register_buffer("first", pairs[0], persistent=False)
        self.register_buffer("second", pairs[1], persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Products (B, M (M - 1) / 2, E) of fields (B, M, E)."""
        turned = torch.einsum("bme,mef->bmf", fields, self.weight)
        return turned.index_select(1, self.first) * fields.index_select(1, self.second)


class FiBiNET(nn.Module):
    """Bilinear products of M fields (see `count_fields`), also weighted, and an MLP over them.

    Example::

        model = FiBiNET(fields=6, embedding_dim=8, senet_reduction=3)
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    def __init__(
        self,
        fields: int,
        embedding_dim: int,
        *,
        senet_reduction: int = 3,
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.senet = SENET(fields, senet_reduction)
        self.bilinear = BilinearInteraction(fields, embedding_dim)
        self.weighted_bilinear = BilinearInteraction(fields, embedding_dim)
        self.linear = nn.Linear(fields * embedding_dim, 1)
        self.deep = MLP(fields * (fields - 1) * embedding_dim, mlp, dropout)
        self.last = nn.Linear(mlp[-1], 1, bias=False)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,)."""
        fields = stack_fields(inputs)
        products = [self.bilinear(fields), self.weighted_bilinear(self.senet(fields))]
        deep = self.deep(torch.cat(products, dim=1).flatten(1))
        return Output((self.linear(fields.flatten(1)) + self.last(deep)).squeeze(-1))
