"""Deep interest network (Zhou et al., KDD 2018, arXiv 1706.06978)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.layers import Dice, DiceHead
from reki_ray.models.inputs import BackboneInputs, Output


class TargetAttention(nn.Module):
    """Weighted sum of the history, weights from an MLP on [h, t, h - t, h * t].

    The weights are not normalised (the paper's section 4.3: their sum is the strength of an
    interest). Padding has weight zero, so an empty history gives zeros.

    Example::

        attention = TargetAttention(size=8, widths=(32, 16))
        mask = torch.ones(4, 6, dtype=torch.bool)
        assert attention(torch.randn(4, 8), torch.randn(4, 6, 8), mask).shape == (4, 8)
    """

    def __init__(self, size: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.first = nn.Linear(4 * size, widths[0])
        self.dices = nn.ModuleList(Dice(width) for width in widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((*widths, 1)))

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Interest (B, E) of target (B, E) and history (B, L, E), real where mask (B, L) is."""
        x = self._first_layer(target, history)  # (B, L, widths[0])
        for dice, layer in zip(self.dices, self.layers, strict=True):
            x = layer(dice(x, mask))
        weights = x.squeeze(-1).masked_fill(~mask, 0.0)  # (B, L)
        return torch.bmm(weights.unsqueeze(1), history).squeeze(1)

    def _first_layer(self, target: Tensor, history: Tensor) -> Tensor:
        # W [h, t, h - t, h * t] = h (W_h + W_d) + (h * t) W_p + t (W_t - W_d): this never
        # allocates the four blocks, each B x L x E.
        of_h, of_t, of_difference, of_product = self.first.weight.t().chunk(4)  # (E, W)
        offset = torch.addmm(self.first.bias, target, of_t - of_difference).unsqueeze(1)
        of_history = of_h + of_difference
        if history.shape[1] < self.first.out_features:
            product = history * target.unsqueeze(1)  # (B, L, E)
            return offset + history @ of_history + product @ of_product
        # (h * t) W_p = h (t * W_p): one matrix per sample is smaller than a long history.
        matrix = of_history + target.unsqueeze(-1) * of_product  # (B, E, W)
        return torch.baddbmm(offset, history, matrix)


class DIN(nn.Module):
    """Target attention and an MLP on [profile, target, interest, target * interest, h_u, h_i].

    Example::

        model = DIN(embedding_dim=8, user_fields=2, augmented_dim=8)
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    def __init__(
        self,
        embedding_dim: int,
        user_fields: int = 0,
        augmented_dim: int = 0,
        *,
        attention: tuple[int, ...] = (32, 16),
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.attention = TargetAttention(embedding_dim, attention)
        self.head = DiceHead((user_fields + 3) * embedding_dim, augmented_dim, mlp, dropout)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,)."""
        target = inputs.target
        interest = self.attention(target, inputs.history, inputs.mask)  # (B, E)
        parts = [inputs.users.flatten(1), target, interest, target * interest]
        return Output(self.head(parts, inputs.augmented))
