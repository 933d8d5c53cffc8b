"""Hybrid-expert integration network: representations r to augmented vectors h.

REKI (arXiv 2408.10520), section on the hybridized expert-integrated network; the same
network is KAR's hybrid-expert adaptor (arXiv 2306.10933, section 3.4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override


class Adaptor(nn.Module):
    """Computes the augmented vectors of both sides; each row depends on its own input alone."""

    def users(self, r: Tensor) -> Tensor:
        """Augmented vectors h_u (N, q) of user representations r_u (N, d)."""
        raise NotImplementedError

    def items(self, r: Tensor) -> Tensor:
        """Augmented vectors h_i (N, q) of item representations r_i (N, d)."""
        raise NotImplementedError

    def shared_items(self, r: Tensor) -> Tensor:
        """Output (N, q) of the shared experts alone for item representations (N, d)."""
        raise NotImplementedError


class ExpertBank(nn.Module):
    """n experts over the same input: d -> hidden -> output, ReLU after both layers.

    The first layers are one matrix product and the second layers one batched product:
    many small products would leave the processor idle.

    Example::

        bank = ExpertBank(experts=3, input_dim=16, hidden=8, output=4)
        assert bank(torch.randn(5, 16)).shape == (3, 5, 4)
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
        # Contiguous: in bfloat16 the gradient of a transposed operand takes 30 times as long.
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
        output: Length q of an augmented vector.
        shared_experts: Number n_s of experts that serve both sides.
        dedicated_experts: Number of experts of each side.

    Example::

        hein = HEIN(input_dim=384, hidden=128, output=32, shared_experts=2, dedicated_experts=6)
        r_users, r_items = torch.randn(8, 384), torch.randn(8, 384)
        h_users, h_items = hein.users(r_users), hein.items(r_items)  # (8, 32) each
        click_logits = (h_users * h_items).sum(dim=1)  # or as extra features of your model
        loss = nn.functional.binary_cross_entropy_with_logits(click_logits, torch.ones(8))
        loss.backward()
    """

    def __init__(
        self,
        input_dim: int,
        *,
        hidden: int = 128,
        output: int = 32,
        shared_experts: int = 2,
        dedicated_experts: int = 6,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        gates = shared_experts + dedicated_experts
        self.shared = ExpertBank(shared_experts, input_dim, hidden, output)
        self.user_experts = ExpertBank(dedicated_experts, input_dim, hidden, output)
        self.item_experts = ExpertBank(dedicated_experts, input_dim, hidden, output)
        self.user_gate = nn.Linear(input_dim, gates)
        self.item_gate = nn.Linear(input_dim, gates)

    @override
    def users(self, r: Tensor) -> Tensor:
        return self._mix(r, self.user_gate, self.user_experts)

    @override
    def items(self, r: Tensor) -> Tensor:
        return self._mix(r, self.item_gate, self.item_experts)

    @override
    def shared_items(self, r: Tensor) -> Tensor:
        experts = self.shared(r)  # (n_s, N, q)
        gates = torch.softmax(self.item_gate(r)[:, : len(experts)], dim=-1)
        return torch.einsum("nk,knq->nq", gates, experts)

    def forward(self, r_users: Tensor, r_items: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented vectors (N, q) and (M, q) of users (N, d) and items (M, d)."""
        return self.users(r_users), self.items(r_items)

    def _mix(self, r: Tensor, gate: nn.Linear, dedicated: ExpertBank) -> Tensor:
        gates = torch.softmax(gate(r), dim=-1)  # (N, n_s + n_d)
        experts = torch.cat([self.shared(r), dedicated(r)])  # (n_s + n_d, N, q)
        return torch.einsum("nk,knq->nq", gates, experts)


class SharedMixture(Adaptor):
    """One mixture for both sides, h = sum_k softmax(W r + b)[k] S_k(r): all experts are shared.

    Example::

        mixture = SharedMixture(input_dim=16, experts=4, hidden=8, output=4)
        assert mixture.users(torch.randn(5, 16)).shape == (5, 4)
    """

    def __init__(self, input_dim: int, *, experts: int, hidden: int, output: int) -> None:
        super().__init__()
        self.bank = ExpertBank(experts, input_dim, hidden, output)
        self.gate = nn.Linear(input_dim, experts)

    @override
    def users(self, r: Tensor) -> Tensor:
        return torch.einsum("nk,knq->nq", torch.softmax(self.gate(r), dim=-1), self.bank(r))

    @override
    def items(self, r: Tensor) -> Tensor:
        return self.users(r)

    @override
    def shared_items(self, r: Tensor) -> Tensor:
        return self.users(r)


class TwoTowers(Adaptor):
    """A separate network for each side.

    Example::

        towers = TwoTowers(nn.Linear(16, 4), nn.Linear(16, 4))
        assert towers.items(torch.randn(5, 16)).shape == (5, 4)
    """

    def __init__(self, user_tower: nn.Module, item_tower: nn.Module) -> None:
        super().__init__()
        self.user_tower = user_tower
        self.item_tower = item_tower

    @override
    def users(self, r: Tensor) -> Tensor:
        h: Tensor = self.user_tower(r)
        return h

    @override
    def items(self, r: Tensor) -> Tensor:
        h: Tensor = self.item_tower(r)
        return h
