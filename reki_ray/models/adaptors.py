"""What turns representations r into augmented vectors h: HEIN, and simpler networks beside it.

The simpler ones are the ablations of the REKI paper's section on HEIN: they tell what sharing
experts between the sides, and mixing experts at all, is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from reki_ray.config import HeinConfig
from reki_ray.models.hein import HEIN, Adaptor, ExpertBank


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
