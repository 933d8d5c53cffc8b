"""Layers that several backbones share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from reki_ray.models.inputs import BackboneInputs


class Dice(nn.Module):
    """Data-adaptive activation (DIN, section 5.3).

        Dice(x) = p(x) x + (1 - p(x)) alpha x,   p(x) = sigmoid((x - E[x]) / sqrt(Var[x] + eps))

    E and Var are those of the batch in training and running averages in evaluation, so that a
    score never depends on what else is scored with it. A training batch with a single row has
    no variance and uses the running averages too. E and Var only place the gate: no gradient
    flows through them.

    Args:
        momentum: Weight of the newest batch in the running averages.

    Example::

        dice = Dice(size=16)
        assert dice(torch.randn(4, 16)).shape == (4, 16)
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
        """Activation of x (..., size); the mask (...) is True at rows that the statistics count."""
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
        # Products with a 0/1 vector: several times as fast as reductions over rows.
        mean = counted @ rows / count
        variance = (counted @ rows.square() / count - mean.square()).clamp_min(0.0)
        enough = count >= 2  # a tensor: a condition in Python would wait for the device
        mean = torch.where(enough, mean, self.running_mean)
        variance = torch.where(enough, variance, self.running_variance)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_variance.lerp_(variance, self.momentum)
        return mean, variance


class DiceHead(nn.Module):
    """MLP with Dice from the parts of a sample to its logit, and h_u and h_i beside them.

    Augmented vectors enter the first layer through separate weights without bias: with zeros the
    network equals the one without knowledge.

    Args:
        augmented_dim: Length q of h_u and h_i; 0 builds the network without knowledge.

    Example::

        head = DiceHead(width=40, augmented_dim=8, mlp=(16, 8), dropout=0.2)
        logits = head([torch.randn(4, 24), torch.randn(4, 16)], torch.randn(4, 2, 8))
    """

    def __init__(
        self, width: int, augmented_dim: int, mlp: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.first = nn.Linear(width, mlp[0])
        self.dices = nn.ModuleList(Dice(size) for size in mlp)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((*mlp, 1)))
        self.dropout = nn.Dropout(dropout)
        # Last, so that a seed gives the other layers the same start as without knowledge.
        knowledge = 2 * augmented_dim
        self.knowledge = nn.Linear(knowledge, mlp[0], bias=False) if knowledge else None

    def forward(self, parts: list[Tensor], augmented: Tensor | None) -> Tensor:
        """Logits (B,) of parts (B, ...) and of augmented vectors (B, 2, q)."""
        x: Tensor = self.first(torch.cat(parts, dim=1))  # (B, mlp[0])
        if self.knowledge is not None and augmented is not None:
            x = x + self.knowledge(augmented.flatten(1))
        for dice, layer in zip(self.dices, self.layers, strict=True):
            x = layer(self.dropout(dice(x)))
        return x.squeeze(-1)


class MLP(nn.Sequential):
    """Hidden layers with ReLU and dropout; its output has the last width.

    Example::

        mlp = MLP(48, (16, 8), dropout=0.2)
        assert mlp(torch.randn(4, 48)).shape == (4, 8)
    """

    def __init__(self, width: int, mlp: tuple[int, ...], dropout: float) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise((width, *mlp)):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)


def count_fields(user_fields: int, *, augmented: bool) -> int:
    """Number M of the fields that `stack_fields` returns."""
    return user_fields + 2 + (2 if augmented else 0)


def stack_fields(inputs: BackboneInputs) -> Tensor:
    """Fields of a sample (B, M, E), for models of interactions between fields.

    They are the profile, the item, the mean of the history (zeros if it is empty) and, with
    knowledge, h_u and h_i, which therefore need the length E of an embedding.
    """
    mask = inputs.mask.unsqueeze(-1)  # (B, L, 1)
    past = (inputs.history * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)  # (B, E)
    fields = [inputs.users, inputs.target.unsqueeze(1), past.unsqueeze(1)]
    if inputs.augmented is not None:
        fields.append(inputs.augmented)
    return torch.cat(fields, dim=1)
