"""Multi-level interaction reranking (Xi et al., SIGIR 2022, arXiv 2204.09370)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.layers import MLP
from reki_ray.models.inputs import InputDims, RerankInputs
from reki_ray.models.rerankers.layers import (
    Attention,
    CandidateEncoder,
    MaskedReader,
    masked_softmax,
)


class Decay(nn.Module):
    """Personalised decay: how much less a user's older interactions count.

        1 + exp(-theta_u log2(1 + n_l));   theta_u = softplus(w . relu(W profile + b) + c)

    n_l is the number of interactions since l, in place of the paper's time since then.

    Example::

        decay = Decay(InputDims(embedding=8, user_fields=2, augmented=8), hidden=16)
        assert decay(inputs).shape == (4, 6)  # inputs as in the example of RerankInputs
    """

    def __init__(self, dims: InputDims, hidden: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(hidden))
        profile = dims.user_fields * dims.embedding
        self.of_profile = nn.Linear(profile, hidden, bias=False) if profile else None
        self.last = nn.Linear(hidden, 1)
        nn.init.uniform_(self.bias, -0.1, 0.1)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Factors (B, L) between 1 and 2."""
        x = self.bias.expand(inputs.users.shape[0], -1)
        if self.of_profile is not None:
            x = x + self.of_profile(inputs.users.flatten(1))
        theta = nn.functional.softplus(self.last(torch.relu(x)))  # (B, 1)
        mask = inputs.history_mask.to(x.dtype)
        since = mask.flip(1).cumsum(dim=1).flip(1) - mask  # later real interactions (B, L)
        return 1 + torch.exp(-theta * torch.log2(1 + since))


class SLAttention(nn.Module):
    """Attention between the set of candidates S and the list of the history G.

        C = tanh(d * (G W S^T + e W_f t^T))                       affinity (L, K), decay d
        P = tanh(S W_s + C^T G W_g);   Q = tanh(G W_g + C S W_s)
        v_k = sum_k' softmax_k'(P_k A P_k'^T / sqrt(D)) S_k'      context of k in the set
        q_k = sum_l  softmax_l (P_k B Q_l^T  / sqrt(D)) G_l       context of k in the history

    The first term of the affinity compares whole vectors, the second features: e_l and t_k are
    sums of embeddings (id, attributes, rating), so e_l W_f t_k^T is the sum over all pairs of
    their features. The paper's maps have one weight per place of the list; this layer uses
    products of hidden vectors instead, so that the order of candidates does not change their
    scores, as the paper intends.

    Args:
        of_set: Length of the vectors S.
        of_list: Length of the vectors G.

    Example::

        attention = SLAttention(size=8, of_set=12, of_list=10, hidden=16)
        s, g, decay = torch.randn(4, 5, 12), torch.randn(4, 6, 10), torch.ones(4, 6)
        assert attention(s, g, decay, inputs).shape == (4, 5, 22)
    """

    def __init__(self, size: int, of_set: int, of_list: int, hidden: int) -> None:
        super().__init__()
        self.affinity = nn.Linear(of_set, of_list, bias=False)
        self.feature_affinity = nn.Linear(size, size, bias=False)
        self.of_set = nn.Linear(of_set, hidden, bias=False)
        self.of_list = nn.Linear(of_list, hidden, bias=False)
        self.to_set = nn.Linear(hidden, hidden, bias=False)
        self.to_list = nn.Linear(hidden, hidden, bias=False)

    def forward(self, s: Tensor, g: Tensor, decay: Tensor, inputs: RerankInputs) -> Tensor:
        """[v_k, q_k] of every candidate (B, K, of_set + of_list).

        Of candidates s (B, K, of_set), history g (B, L, of_list) and its decay (B, L).
        """
        raw = g @ self.affinity(s).transpose(1, 2)  # (B, L, K)
        raw = raw + inputs.history @ self.feature_affinity(inputs.candidates).transpose(1, 2)
        real = inputs.history_mask.unsqueeze(2) & inputs.mask.unsqueeze(1)
        affinity = torch.tanh(decay.unsqueeze(-1) * raw) * real
        of_s, of_g = self.of_set(s), self.of_list(g)  # (B, K, D), (B, L, D)
        p = torch.tanh(of_s + affinity.transpose(1, 2) @ of_g)
        q = torch.tanh(of_g + affinity @ of_s)
        scale = math.sqrt(p.shape[-1])
        among = masked_softmax(p @ self.to_set(p).transpose(1, 2) / scale, inputs.mask[:, None])
        back = p @ self.to_list(q).transpose(1, 2) / scale  # (B, K, L)
        return torch.cat([among @ s, masked_softmax(back, inputs.history_mask[:, None]) @ g], -1)


class MIR(nn.Module):
    """Interactions within the set of candidates, within the history, and between the two.

        S_k = [x_k, Attention(x, x)_k]                intra-set interaction
        G_l = [e_l, LSTM(e)_l, LSTM backwards(e)_l]   intra-list interaction
        logit_k = MLP [x_k, SLAttention(S, G)_k]      set-to-list interaction

    x_k comes from `CandidateEncoder`, with profile and knowledge but without the history, which
    the set-to-list interaction reads.

    Example::

        reranker = MIR(InputDims(embedding=8, user_fields=2, augmented=8), hidden=16)
        logits = reranker(inputs)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self,
        dims: InputDims,
        *,
        hidden: int = 64,
        heads: int = 2,
        mlp: tuple[int, ...] = (200, 80),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        size = dims.embedding
        self.intra_set = Attention(hidden, heads)
        self.forwards, self.backwards = (
            MaskedReader(nn.LSTM(size, hidden, batch_first=True), backwards=backwards)
            for backwards in (False, True)
        )
        of_set, of_list = 2 * hidden, size + 2 * hidden
        self.set_to_list = SLAttention(size, of_set, of_list, hidden)
        self.mlp = MLP(hidden + of_set + of_list, mlp, dropout)
        self.last = nn.Linear(mlp[-1], 1, bias=False)
        self.decay = Decay(dims, hidden)
        self.encoder = CandidateEncoder(dims, hidden, dropout, interest=False)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K)."""
        x = self.encoder(inputs)  # (B, K, D)
        s = torch.cat([x, self.intra_set(x, x, inputs.mask)], dim=-1)
        mask = inputs.history_mask
        history = inputs.history * mask.unsqueeze(-1)
        read = [self.forwards(history, mask), self.backwards(history, mask)]
        g = torch.cat([history, *read], dim=-1)  # (B, L, E + 2 D)
        met = self.set_to_list(s, g, self.decay(inputs), inputs)
        logits: Tensor = self.last(self.mlp(torch.cat([x, met], dim=-1))).squeeze(-1)
        return logits
