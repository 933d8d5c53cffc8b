"""FiBiNET (Huang et al., RecSys 2019, arXiv 1905.09433)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.config import NetworkConfig
from reki_ray.models.backbones.layers import MLP, count_fields, stack_fields
from reki_ray.models.backbones.protocol import BackboneInputs, Output


class SENET(nn.Module):
    """Weighs fields by their importance (the paper's section 3.3).

        z_m = mean of e_m,    a = relu(W_2 relu(W_1 z)),    v_m = a_m e_m

    Args:
        fields: Number M of fields.
        reduction: Fields for each number of the narrow layer.
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

    Args:
        fields: Number M of fields.
        size: Embedding size E.
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
    """Bilinear products of the fields and of the weighted fields, and an MLP over both.

    Args:
        config: Sizes.
        user_fields: Number F of profile fields.
        augmented: Length q = E of an augmented vector; 0 builds the network without knowledge.
    """

    def __init__(self, config: NetworkConfig, user_fields: int, augmented: int) -> None:
        super().__init__()
        fields = count_fields(user_fields, augmented)
        self.senet = SENET(fields, config.senet_reduction)
        self.bilinear = BilinearInteraction(fields, config.embedding)
        self.weighted_bilinear = BilinearInteraction(fields, config.embedding)
        self.linear = nn.Linear(fields * config.embedding, 1)
        self.deep = MLP(fields * (fields - 1) * config.embedding, config)
        self.last = nn.Linear(config.mlp[-1], 1, bias=False)

    def forward(self, inputs: BackboneInputs) -> Output:
        """See `Backbone`."""
        fields = stack_fields(inputs)
        products = [self.bilinear(fields), self.weighted_bilinear(self.senet(fields))]
        deep = self.deep(torch.cat(products, dim=1).flatten(1))
        return Output((self.linear(fields.flatten(1)) + self.last(deep)).squeeze(-1))
