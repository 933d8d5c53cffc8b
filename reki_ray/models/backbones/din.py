"""Deep interest network (Zhou et al., KDD 2018, arXiv 1706.06978)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from reki_ray.config import DinConfig
from reki_ray.models.backbones.protocol import BackboneInputs


class Dice(nn.Module):
    """Data-adaptive activation (the paper's section 5.3).

        Dice(x) = p(x) x + (1 - p(x)) alpha x,   p(x) = sigmoid((x - E[x]) / sqrt(Var[x] + eps))

    E and Var are those of the batch in training and running averages in evaluation, so that a
    score never depends on what else is scored with it. A training batch with a single row has
    no variance and uses the running averages too. E and Var only place the gate: no gradient
    flows through them.

    Args:
        size: Number of features.
        momentum: Weight of the newest batch in the running averages.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, size: int, momentum: float = 0.05, eps: float = 1e-6) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.alpha = nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_variance", torch.ones(size))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Activation of x (..., size).

        Args:
            x: Inputs.
            mask: True at the rows (...) that count for the statistics; None counts all.
        """
        mean, variance = self._statistics(x.detach(), mask)
        scale = torch.rsqrt(variance + self.eps)
        p = torch.sigmoid(torch.addcmul(-mean * scale, x, scale))
        return x * torch.lerp(self.alpha, torch.ones_like(self.alpha), p)

    def _statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean, self.running_variance
        rows = x.reshape(-1, x.shape[-1])
        counted = rows.new_ones(len(rows)) if mask is None else mask.reshape(-1).to(rows.dtype)
        count = counted.sum()
        if count < 2:
            return self.running_mean.clone(), self.running_variance.clone()
        # Products with a vector of marks: several times as fast as reductions over rows.
        mean = counted @ rows / count
        variance = (counted @ rows.square() / count - mean.square()).clamp_min(0.0)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_variance.lerp_(variance, self.momentum)
        return mean, variance


class TargetAttention(nn.Module):
    """Weighted sum of the history, weights from an MLP on [h, t, h - t, h * t].

    The weights are not normalised (the paper's section 4.3: their sum tells the strength of an
    interest). Padding has weight zero, so an empty history gives zeros.

    Args:
        size: Embedding size E.
        widths: Widths of the MLP.
    """

    def __init__(self, size: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.first = nn.Linear(4 * size, widths[0])
        self.dices = nn.ModuleList(Dice(width) for width in widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((*widths, 1)))

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Interest (B, E).

        Args:
            target: (B, E).
            history: (B, L, E).
            mask: True at real interactions (B, L).
        """
        x = self._first_layer(target, history)  # (B, L, widths[0])
        for dice, layer in zip(self.dices, self.layers, strict=True):
            x = layer(dice(x, mask))
        weights = x.squeeze(-1).masked_fill(~mask, 0.0)  # (B, L)
        return torch.bmm(weights.unsqueeze(1), history).squeeze(1)

    def _first_layer(self, target: Tensor, history: Tensor) -> Tensor:
        # W [h, t, h - t, h * t] = h (W_h + W_d + t * W_p) + t (W_t - W_d): the bracket is one
        # matrix a sample, so the four blocks, each B x L x E, are never laid out in memory.
        of_h, of_t, of_difference, of_product = self.first.weight.t().chunk(4)  # (E, W)
        matrix = (of_h + of_difference) + target.unsqueeze(-1) * of_product  # (B, E, W)
        offset = torch.addmm(self.first.bias, target, of_t - of_difference)  # (B, W)
        return torch.baddbmm(offset.unsqueeze(1), history, matrix)


class DIN(nn.Module):
    """Target attention and an MLP on [profile, target, interest, target * interest, h_u, h_i].

    Augmented vectors enter the first layer through weights of their own without bias: zeros
    leave the network as it is without knowledge.

    Args:
        config: Sizes.
        user_fields: Number F of profile fields.
        augmented: Length q of an augmented vector; 0 builds the network without knowledge.
    """

    def __init__(self, config: DinConfig, user_fields: int, augmented: int) -> None:
        super().__init__()
        self.attention = TargetAttention(config.embedding, config.attention)
        self.first = nn.Linear((user_fields + 3) * config.embedding, config.mlp[0])
        self.dices = nn.ModuleList(Dice(width) for width in config.mlp)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((*config.mlp, 1)))
        self.dropout = nn.Dropout(config.dropout)
        # Last, so that with one seed the other layers start as they do without knowledge.
        self.knowledge = nn.Linear(2 * augmented, config.mlp[0], bias=False) if augmented else None

    def forward(self, inputs: BackboneInputs) -> Tensor:
        """Logits (B,)."""
        target = inputs.target
        interest = self.attention(target, inputs.history, inputs.mask)  # (B, E)
        features = [inputs.users.flatten(1), target, interest, target * interest]
        x: Tensor = self.first(torch.cat(features, dim=1))  # (B, mlp[0])
        if self.knowledge is not None and inputs.augmented is not None:
            x = x + self.knowledge(inputs.augmented.flatten(1))
        for dice, layer in zip(self.dices, self.layers, strict=True):
            x = layer(self.dropout(dice(x)))
        return x.squeeze(-1)
