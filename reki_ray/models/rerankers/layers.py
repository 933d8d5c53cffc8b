"""Layers that several rerankers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reki_ray.models.inputs import InputDims, RerankInputs


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension, where the mask is True; zeros where it nowhere is."""
    lowest = torch.finfo(scores.dtype).min
    return torch.softmax(scores.masked_fill(~mask, lowest), dim=-1) * mask


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., NeurIPS 2017, section 3.2.2).

        head_j = softmax(Q W_j^Q (K W_j^K)^T / sqrt(D / heads)) K W_j^V;   [head_1, ...] W^O

    Keys have no bias: the softmax would cancel it.

    Example::

        attention, x = Attention(size=16, heads=2), torch.randn(4, 5, 16)
        assert attention(x, x, torch.ones(4, 5, dtype=torch.bool)).shape == (4, 5, 16)
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """(B, M, D) of queries (B, M, D) and keys (B, N, D), real where the mask (B, N) is True."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, ., D / heads)
            for part in (self.query(queries), self.key(keys), self.value(keys))
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])  # (B, heads, M, N)
        mixed = masked_softmax(scores, mask[:, None, None]) @ value
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class AttentionBlock(nn.Module):
    """Attention and a feed-forward layer, each with a residual and normalised after it.

        B = LayerNorm(Q + Attention(Q, K));   LayerNorm(B + W_2 relu(W_1 B))

    With Q = K it is a block of the transformer's encoder (Vaswani et al. 2017, section 3.1), and
    in general the multi-head attention block MAB(Q, K, K) of SetRank.

    Example::

        block, x = AttentionBlock(16, heads=2, feed_forward=32, dropout=0.2), torch.randn(4, 5, 16)
        assert block(x, x, torch.ones(4, 5, dtype=torch.bool)).shape == (4, 5, 16)
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.first_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feed_forward)
        self.narrow = nn.Linear(feed_forward, width)
        self.second_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Output (B, M, D) of queries (B, M, D) and keys (B, N, D) with mask (B, N)."""
        x = self.first_norm(queries + self.dropout(self.attention(queries, keys, mask)))
        fed = self.narrow(self.dropout(torch.relu(self.widen(x))))
        output: Tensor = self.second_norm(x + self.dropout(fed))
        return output


class CandidateEncoder(nn.Module):
    """Vector x_k of a candidate before it meets the others of its list.

        s_k = sum_l softmax_l(t_k W e_l / sqrt(E)) e_l          interest of the history e in t_k
        x_k = W_2 relu(W_1 [t_k, s_k, t_k * s_k, profile] + b_1 + V [h_u, h_i]) + b_2

    In place of the published features of a document for a query, it makes the rerankers comparable:
    each gets the candidate, the profile, the history and the knowledge through it, and sees the
    user without knowledge too. Augmented vectors enter through
    separate weights without bias: with zeros the network equals the one without knowledge.

    Args:
        interest: Whether s_k is read; without it the reranker must read the history itself.

    Example::

        encoder = CandidateEncoder(InputDims(embedding=8, user_fields=2, augmented=8), hidden=16)
        assert encoder(inputs).shape == (4, 5, 16)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self, dims: InputDims, hidden: int, dropout: float = 0.2, *, interest: bool = True
    ) -> None:
        super().__init__()
        size = dims.embedding
        self.interest = nn.Linear(size, size, bias=False) if interest else None
        self.of_items = nn.Linear(3 * size if interest else size, hidden)
        profile = dims.user_fields * size
        self.of_profile = nn.Linear(profile, hidden, bias=False) if profile else None
        self.last = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        # Last, so that a seed gives the other layers the same start as without knowledge.
        q = dims.augmented
        self.of_h_user = nn.Linear(q, hidden, bias=False) if q else None
        self.of_h_items = nn.Linear(q, hidden, bias=False) if q else None

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Vectors (B, K, D)."""
        x: Tensor = self.of_items(self._item_parts(inputs))
        # Inputs shared by all candidates of a list are multiplied once per list.
        if self.of_profile is not None:
            x = x + self.of_profile(inputs.users.flatten(1)).unsqueeze(1)
        if self.of_h_user is not None and inputs.augmented_user is not None:
            x = x + self.of_h_user(inputs.augmented_user).unsqueeze(1)
        if self.of_h_items is not None and inputs.augmented_items is not None:
            x = x + self.of_h_items(inputs.augmented_items)
        encoded: Tensor = self.last(self.dropout(torch.relu(x)))
        return encoded

    def _item_parts(self, inputs: RerankInputs) -> Tensor:
        targets = inputs.candidates
        if self.interest is None:
            return targets
        scores = self.interest(targets) @ inputs.history.transpose(1, 2)  # (B, K, L)
        weights = masked_softmax(
            scores / math.sqrt(targets.shape[-1]), inputs.history_mask[:, None]
        )
        interests = weights @ inputs.history  # (B, K, E)
        return torch.cat([targets, interests, targets * interests], dim=-1)


class MaskedReader(nn.Module):
    """A recurrent layer over the real steps of a sequence, as if the others were not there.

    Example::

        reader = MaskedReader(nn.GRU(8, 16, batch_first=True), backwards=True)
        mask = torch.tensor([[True, True, False]])
        assert reader(torch.randn(1, 3, 8), mask).shape == (1, 3, 16)
    """

    def __init__(self, layer: nn.GRU | nn.LSTM, *, backwards: bool) -> None:
        super().__init__()
        self.layer = layer
        self.backwards = backwards

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """Outputs (B, N, hidden) at the steps (B, N, D), zeros where the mask (B, N) is False."""
        places = torch.arange(steps.shape[1], device=steps.device)
        if self.backwards:
            places = -places
        # Real steps first, in reading order: later steps do not reach their outputs.
        order = torch.argsort(places + (~mask) * 2 * steps.shape[1], dim=1, stable=True)
        outputs, _ = self.layer(steps.gather(1, order.unsqueeze(-1).expand_as(steps)))
        back = torch.argsort(order, dim=1, stable=True).unsqueeze(-1).expand_as(outputs)
        in_place: Tensor = outputs.gather(1, back) * mask.unsqueeze(-1)
        return in_place
