"""DeepFM (Guo et al., IJCAI 2017, arXiv 1703.04247)."""

from __future__ import annotations

from torch import Tensor, nn

from reki_ray.models.backbones.layers import MLP, stack_fields
from reki_ray.models.backbones.protocol import BackboneInputs, Output


def factorization_machine(fields: Tensor) -> Tensor:
    """Sum (B,) of the products of all pairs of fields (B, M, E), sum_i<j e_i . e_j."""
    return 0.5 * (fields.sum(dim=1).square() - fields.square().sum(dim=1)).sum(dim=1)


class DeepFM(nn.Module):
    """Linear part, factorization machine and MLP over the same fields.

        y = w . x + sum_i<j e_i . e_j + MLP(x),    x the fields side by side

    The linear part weighs embeddings: fields may hold many values, or none of a vocabulary.

    Args:
        fields: Number M of fields, see `count_fields`.
        embedding_dim: Length E of a field.
        mlp: Widths of the MLP.
        dropout: Dropout of the MLP.

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
