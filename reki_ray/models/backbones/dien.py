"""Deep interest evolution network (Zhou et al., AAAI 2019, arXiv 1809.03672)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.layers import DiceHead
from reki_ray.models.inputs import BackboneInputs, Output


class AUGRU(nn.Module):
    """GRU whose update gate is scaled by an attention weight (the paper's section 4.3).

        u_t = a_t sigmoid(W_u x_t + U_u h_t-1)     r_t = sigmoid(W_r x_t + U_r h_t-1)
        n_t = tanh(W_n x_t + r_t (U_n h_t-1))      h_t = (1 - u_t) h_t-1 + u_t n_t

    A weight of 0 keeps the state, so padding has weight 0.

    Example::

        augru = AUGRU(size=8)
        assert augru(torch.randn(4, 6, 8), torch.rand(4, 6)).shape == (4, 8)
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(size, 3 * size)
        self.state = nn.Linear(size, 3 * size)

    def forward(self, steps: Tensor, weights: Tensor) -> Tensor:
        """Last state (B, E) over steps (B, L, E) with weights (B, L)."""
        of_inputs = self.inputs(steps).unbind(dim=1)
        state = steps.new_zeros(steps.shape[0], steps.shape[2])
        for x, weight in zip(of_inputs, weights.unsqueeze(-1).unbind(dim=1), strict=True):
            x_update, x_reset, x_new = x.chunk(3, dim=1)
            h_update, h_reset, h_new = self.state(state).chunk(3, dim=1)
            update = weight * torch.sigmoid(x_update + h_update)
            new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
            state = torch.lerp(state, new, update)
        return state


class DIEN(nn.Module):
    """Interests from a GRU over the history, evolved towards the target by an AUGRU.

        a_t = softmax_t(h_t W e)            over the states h_t of real interactions, target e
        L_aux = - mean_t [log sigmoid(h_t . e_t+1) + log sigmoid(- h_t . n_t+1)]

    L_aux teaches a state the next interaction e_t+1 against n_t+1, which the paper samples from
    all items; here it is another user's interaction at that place of the batch. The MLP takes
    [profile, target, interest, target * interest, h_u, h_i].

    Example::

        model = DIEN(embedding_dim=8, user_fields=2, augmented_dim=8)
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    def __init__(
        self,
        embedding_dim: int,
        user_fields: int = 0,
        augmented_dim: int = 0,
        *,
        auxiliary_weight: float = 0.5,
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        size = embedding_dim
        self.auxiliary_weight = auxiliary_weight
        self.extraction = nn.GRU(size, size, batch_first=True)
        self.attention = nn.Linear(size, size, bias=False)
        self.evolution = AUGRU(size)
        self.head = DiceHead((user_fields + 3) * size, augmented_dim, mlp, dropout)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,), in training with the weighted L_aux."""
        target = inputs.target
        history, mask = _real_first(inputs.history, inputs.mask)
        states, _ = self.extraction(history)  # (B, L, E); those at padding are unused
        scores = torch.bmm(states, self.attention(target).unsqueeze(-1)).squeeze(-1)  # (B, L)
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=1)
        interest = self.evolution(states, torch.where(mask, weights, 0.0))  # (B, E)
        parts = [inputs.users.flatten(1), target, interest, target * interest]
        logits = self.head(parts, inputs.augmented)
        if not self.training or not self.auxiliary_weight:
            return Output(logits)
        return Output(logits, self.auxiliary_weight * _next_loss(states, history, mask))


def _real_first(history: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """History and mask with the padding moved to the end, so that no state starts with it."""
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)  # (B, L)
    mask = mask.gather(1, order)
    moved = history.gather(1, order.unsqueeze(-1).expand_as(history))
    return moved * mask.unsqueeze(-1), mask


def _next_loss(states: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    """Mean of L_aux over the steps with a next interaction in this and the other sample."""
    following, others = history[:, 1:], history.roll(1, dims=0)[:, 1:]  # (B, L - 1, E)
    counted = mask[:, 1:] & mask.roll(1, dims=0)[:, 1:]
    own = (states[:, :-1] * following).sum(dim=-1)
    negative = (states[:, :-1] * others).sum(dim=-1)
    losses = nn.functional.softplus(-own) + nn.functional.softplus(negative)
    return (losses * counted).sum() / counted.sum().clamp_min(1)
