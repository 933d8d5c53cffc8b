"""Hybrid-expert integration network: representations r to augmented vectors h.

REKI (arXiv 2408.10520), section on the hybridized expert-integrated network; the same
network is KAR's hybrid-expert adaptor (arXiv 2306.10933, section 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from reki_ray.config import HeinConfig


class Adaptor(nn.Module):
    """Makes augmented vectors of either side; each depends on its own representation alone."""

    def users(self, r: Tensor) -> Tensor:
        """Augmented vectors h_u (N, q) of user representations r_u (N, d)."""
        raise NotImplementedError

    def items(self, r: Tensor) -> Tensor:
        """Augmented vectors h_i (N, q) of item representations r_i (N, d)."""
        raise NotImplementedError

    def shared_items(self, r: Tensor) -> Tensor:
        """What the experts of both sides alone make of item representations (N, d): (N, q)."""
        raise NotImplementedError


class ExpertBank(nn.Module):
    """n experts over the same input: d -> hidden -> output, ReLU after both layers.

    The first layers are one matrix product and the second layers one batched product:
    many small products would leave the processor waiting.

    Args:
        experts: Number of experts n.
        input_dim: Length d of a representation.
        hidden: Width of the hidden layer.
        output: Length q of an expert's output.
    """

    def __init__(self, experts: int, input_dim: int, hidden: int, output: int) -> None:
        super().__init__()
        self.experts = experts
        self.hidden = nn.Linear(input_dim, experts * hidden)
        self.weight = nn.Parameter(torch.empty(experts, hidden, output))
        self.bias = nn.Parameter(torch.empty(experts, 1, output))
        bound = 1 / math.sqrt(hidden)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, r: Tensor) -> Tensor:
        """Outputs (n, N, q) of all experts for representations r (N, d)."""
        hidden = torch.relu(self.hidden(r)).view(r.shape[0], self.experts, -1)  # (N, n, hidden)
        # Laid out anew: in bfloat16 the gradient of a transposed operand takes 30 times as long.
        hidden = hidden.transpose(0, 1).contiguous()  # (n, N, hidden)
        return torch.relu(torch.baddbmm(self.bias, hidden, self.weight))


class HEIN(Adaptor):
    """Shared experts S serve both sides, dedicated experts P (users) and I (items) one side.

        a_u = softmax(W_u r_u + b_u)      h_u = sum_k a_u[k] S_k(r_u) + sum_k a_u[n_s+k] P_k(r_u)
        a_i = softmax(W_i r_i + b_i)      h_i = sum_k a_i[k] S_k(r_i) + sum_k a_i[n_s+k] I_k(r_i)

    The gates are dense and there is no balance loss. Since h_u depends on r_u alone and h_i on
    r_i alone, both can be computed once after training and stored.

    Args:
        input_dim: Length d of a representation.
        config: Numbers and widths of the experts.
    """

    def __init__(self, input_dim: int, config: HeinConfig) -> None:
        super().__init__()
        self.input_dim = input_dim
        gates = config.shared_experts + config.dedicated_experts

        def bank(experts: int) -> ExpertBank:
            return ExpertBank(experts, input_dim, config.hidden, config.output)

        self.shared = bank(config.shared_experts)
        self.user_experts = bank(config.dedicated_experts)
        self.item_experts = bank(config.dedicated_experts)
        self.user_gate = nn.Linear(input_dim, gates)
        self.item_gate = nn.Linear(input_dim, gates)

    def users(self, r: Tensor) -> Tensor:
        """Augmented vectors h_u (N, q) of user representations r_u (N, d)."""
        return self._mix(r, self.user_gate, self.user_experts)

    def items(self, r: Tensor) -> Tensor:
        """Augmented vectors h_i (N, q) of item representations r_i (N, d)."""
        return self._mix(r, self.item_gate, self.item_experts)

    def shared_items(self, r: Tensor) -> Tensor:
        """See `Adaptor`; gates are normalised over the shared experts."""
        experts = self.shared(r)  # (n_s, N, q)
        gates = torch.softmax(self.item_gate(r)[:, : len(experts)], dim=-1)
        return torch.einsum("nk,knq->nq", gates, experts)

    def forward(self, r_users: Tensor, r_items: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides at once: (N, d) and (M, d) to (N, q) and (M, q)."""
        return self.users(r_users), self.items(r_items)

    def _mix(self, r: Tensor, gate: nn.Linear, dedicated: ExpertBank) -> Tensor:
        gates = torch.softmax(gate(r), dim=-1)  # (N, n_s + n_d)
        experts = torch.cat([self.shared(r), dedicated(r)])  # (n_s + n_d, N, q)
        return torch.einsum("nk,knq->nq", gates, experts)


class OneMixture(Adaptor):
    """One mixture for both sides, h = sum_k softmax(W r + b)[k] S_k(r): all experts are shared.

    Args:
        input_dim: Length d of a representation.
        config: Numbers and widths; there are as many experts as a side of HEIN sees.
    """

    def __init__(self, input_dim: int, config: HeinConfig) -> None:
        super().__init__()
        experts = config.shared_experts + config.dedicated_experts
        self.bank = ExpertBank(experts, input_dim, config.hidden, config.output)
        self.gate = nn.Linear(input_dim, experts)

    def users(self, r: Tensor) -> Tensor:
        """See `Adaptor`."""
        return torch.einsum("nk,knq->nq", torch.softmax(self.gate(r), dim=-1), self.bank(r))

    def items(self, r: Tensor) -> Tensor:
        """See `Adaptor`."""
        return self.users(r)

    def shared_items(self, r: Tensor) -> Tensor:
        """See `Adaptor`; all experts are shared."""
        return self.users(r)


class TwoTowers(Adaptor):
    """A network of its own for each side.

    Args:
        make: Makes the network of a side.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.user_tower = make()
        self.item_tower = make()

    def users(self, r: Tensor) -> Tensor:
        """See `Adaptor`."""
        h: Tensor = self.user_tower(r)
        return h

    def items(self, r: Tensor) -> Tensor:
        """See `Adaptor`."""
        h: Tensor = self.item_tower(r)
        return h


def _mlp(input_dim: int, config: HeinConfig) -> Adaptor:
    """A single expert a side, as wide as one of HEIN's."""
    return TwoTowers(
        lambda: nn.Sequential(
            nn.Linear(input_dim, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.output),
            nn.ReLU(),
        )
    )


def _linear(input_dim: int, config: HeinConfig) -> Adaptor:
    """No network: a projection to the length of an augmented vector."""
    return TwoTowers(lambda: nn.Linear(input_dim, config.output))


ADAPTORS: Mapping[str, Callable[[int, HeinConfig], Adaptor]] = MappingProxyType(
    {"hein": HEIN, "mixture": OneMixture, "mlp": _mlp, "linear": _linear}
)
"""Maker of each value of `train.hein.kind`."""
