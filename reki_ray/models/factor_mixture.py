"""One representation of what is known by factor: learned gates weigh the factors.

Knowledge by factor keeps apart what one text would blend; which factors matter is learned with
the click model, and can be read off its gates (KSER, 2024, knowledge selection).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FactorMixture(nn.Module):
    """Weighted sum of the factors that are known of an id.

        r = sum_k g_k r_k,   g = softmax over the known factors of (w_k r_k + b_k)

    Args:
        factors: Number K of factors.
        dimension: Length d of a factor's representation.
    """

    def __init__(self, factors: int, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(factors, dimension))  # all factors alike at first
        self.bias = nn.Parameter(torch.zeros(factors))

    def gates(self, r: Tensor, known: Tensor) -> Tensor:
        """Weight of each factor (N, K), of sum 1; zeros where nothing is known.

        Args:
            r: Representations (N, K, d).
            known: Which are known (N, K).
        """
        logits = torch.einsum("nkd,kd->nk", r, self.weight) + self.bias
        gates = torch.softmax(logits.masked_fill(~known, torch.finfo(r.dtype).min), dim=1)
        return gates * known

    def forward(self, r: Tensor, known: Tensor) -> Tensor:
        """Representations (N, d) from those by factor, arguments as for `gates`."""
        return torch.einsum("nk,nkd->nd", self.gates(r, known), r)
