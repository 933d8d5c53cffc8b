"""DeepFM (Guo et al., IJCAI 2017, arXiv 1703.04247)."""

from __future__ import annotations

from torch import Tensor, nn

from reki_ray.config import NetworkConfig
from reki_ray.models.backbones.layers import MLP, count_fields, stack_fields
from reki_ray.models.backbones.protocol import BackboneInputs, Output


def factorization_machine(fields: Tensor) -> Tensor:
    """Sum of the products of all pairs of fields, sum_i<j e_i . e_j.

    Args:
        fields: (B, M, E).

    Returns:
        (B,).
    """
    return 0.5 * (fields.sum(dim=1).square() - fields.square().sum(dim=1)).sum(dim=1)


class DeepFM(nn.Module):
    """Linear part, factorization machine and MLP over the same fields.

        y = w . x + sum_i<j e_i . e_j + MLP(x),    x the fields side by side

    The linear part weighs embeddings: fields may hold many values, or none of a vocabulary.

    Args:
        config: Sizes.
        user_fields: Number F of profile fields.
        augmented: Length q = E of an augmented vector; 0 builds the network without knowledge.
    """

    def __init__(self, config: NetworkConfig, user_fields: int, augmented: int) -> None:
        super().__init__()
        width = count_fields(user_fields, augmented) * config.embedding
        self.linear = nn.Linear(width, 1)
        self.deep = MLP(width, config)
        self.last = nn.Linear(config.mlp[-1], 1, bias=False)

    def forward(self, inputs: BackboneInputs) -> Output:
        """See `Backbone`."""
        fields = stack_fields(inputs)
        x = fields.flatten(1)  # (B, M E)
        linear = self.linear(x) + self.last(self.deep(x))  # (B, 1)
        return Output(linear.squeeze(-1) + factorization_machine(fields))
