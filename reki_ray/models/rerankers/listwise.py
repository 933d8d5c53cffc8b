"""DLCM (Ai et al., SIGIR 2018, arXiv 1804.05936), PRM (Pei et al., RecSys 2019, arXiv 1904.06813)
and SetRank (Pang et al., SIGIR 2020, arXiv 1912.05891)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.inputs import InputDims, RerankInputs
from reki_ray.models.rerankers.layers import AttentionBlock, CandidateEncoder, MaskedReader

_INITIAL_STD = 0.05


class DLCM(nn.Module):
    """GRU from the last candidate to the first; its final state is the context of the list.

        z_k = elu(W_2 elu(W_1 x_k + b_1) + b_2);   x_k' = [x_k, z_k]      (input representation)
        o_k = GRU over x_K', ..., x_1';   s = o_1                         (encoding the list)
        logit_k = V . (o_k tanh(W s + b))                                 (re-ranking with it)

    These are the parts of the paper's section 4. The first candidates are read last, so that they
    weigh most in s. tanh(W s + b) is a matrix with a column per comparison, V weighs them.

    Args:
        heads: Comparisons of a candidate with its list.

    Example::

        reranker = DLCM(InputDims(embedding=8, user_fields=2, augmented=8), hidden=16)
        logits = reranker(inputs)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self, dims: InputDims, *, hidden: int = 64, heads: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.abstraction = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU()
        )
        self.reader = MaskedReader(nn.GRU(2 * hidden, hidden, batch_first=True), backwards=True)
        self.context = nn.Linear(hidden, hidden * heads)
        self.last = nn.Linear(heads, 1, bias=False)
        self.encoder = CandidateEncoder(dims, hidden, dropout)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K)."""
        x = self.encoder(inputs)  # (B, K, D)
        outputs = self.reader(torch.cat([x, self.abstraction(x)], dim=-1), inputs.mask)
        lists, _, width = x.shape
        first = inputs.mask.int().argmax(dim=1)[:, None, None].expand(-1, 1, width)
        state = outputs.gather(1, first).squeeze(1)  # (B, D)
        context = torch.tanh(self.context(state)).view(lists, width, -1)  # (B, D, comparisons)
        logits: Tensor = self.last(outputs @ context).squeeze(-1)
        return logits


class PRM(nn.Module):
    """Encoder of the transformer over the list, with places and personalised vectors.

        e_k = W ([t_k, pv_k] + pe_k) + b                     (input layer)
        blocks of self-attention over e_1, ..., e_K          (encoding layer)
        logit_k = w . e_k                                    (output layer)

    These are the parts of the paper's section 4. pe_k belongs to the candidate's place in the
    initial order; candidates beyond the longest training list share its last place. The
    personalised vector pv_k of user and item is the last hidden layer of a click model that was
    trained before (personalized module); here it is that of `CandidateEncoder`, with profile,
    history and knowledge, and trains jointly.

    Args:
        list_size: Largest number of candidates of a training list.

    Example::

        reranker = PRM(InputDims(embedding=8, user_fields=2, augmented=8), list_size=5)
        logits = reranker(inputs)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self,
        dims: InputDims,
        list_size: int,
        *,
        hidden: int = 64,
        heads: int = 2,
        layers: int = 2,
        feed_forward: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = dims.embedding + hidden
        self.places = nn.Embedding(list_size, width)
        nn.init.normal_(self.places.weight, std=_INITIAL_STD)
        self.input = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            AttentionBlock(hidden, heads, feed_forward, dropout) for _ in range(layers)
        )
        self.last = nn.Linear(hidden, 1, bias=False)
        self.encoder = CandidateEncoder(dims, hidden, dropout)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K)."""
        personal = torch.relu(self.encoder(inputs))  # (B, K, D)
        place = (inputs.mask.cumsum(dim=1) - 1).clamp(0, self.places.num_embeddings - 1)
        x = self.input(torch.cat([inputs.candidates, personal], dim=-1) + self.places(place))
        for block in self.blocks:
            x = block(x, x, inputs.mask)
        logits: Tensor = self.last(x).squeeze(-1)
        return logits


class InducedBlock(nn.Module):
    """Induced multi-head self-attention block (the paper's IMSAB).

        IMSAB(X) = MAB(X, H, H);   H = MAB(I, X, X)

    The candidates interact through a few learned inducing points I, so the cost grows linearly
    with the number of candidates, and longer lists than in training are handled alike.

    Example::

        block = InducedBlock(8, heads=2, feed_forward=16, inducing=3, dropout=0.2)
        assert block(torch.randn(4, 5, 8), torch.ones(4, 5, dtype=torch.bool)).shape == (4, 5, 8)
    """

    def __init__(
        self, width: int, heads: int, feed_forward: int, inducing: int, dropout: float
    ) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(inducing, width))
        nn.init.xavier_uniform_(self.points)
        self.gather = AttentionBlock(width, heads, feed_forward, dropout)
        self.spread = AttentionBlock(width, heads, feed_forward, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, D) of candidates (B, K, D), mask (B, K)."""
        points = self.points.expand(x.shape[0], -1, -1)  # (B, inducing, D)
        summary = self.gather(points, x, mask)
        everywhere = torch.ones_like(summary[:, :, 0], dtype=torch.bool)
        output: Tensor = self.spread(x, summary, everywhere)
        return output


class SetRank(nn.Module):
    """Induced blocks over the set of candidates, then a score of each.

    The candidates are a set: their order does not change their scores. As in the paper's main
    model there is no ordinal embedding of initial places, which would break that.

    Example::

        reranker = SetRank(InputDims(embedding=8, user_fields=2, augmented=8), inducing=4)
        logits = reranker(inputs)  # inputs as in the example of RerankInputs
    """

    def __init__(
        self,
        dims: InputDims,
        *,
        hidden: int = 64,
        heads: int = 2,
        layers: int = 2,
        feed_forward: int = 128,
        inducing: int = 8,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            InducedBlock(hidden, heads, feed_forward, inducing, dropout) for _ in range(layers)
        )
        self.last = nn.Linear(hidden, 1, bias=False)
        self.encoder = CandidateEncoder(dims, hidden, dropout)

    def forward(self, inputs: RerankInputs) -> Tensor:
        """Logits (B, K)."""
        x = self.encoder(inputs)  # (B, K, D)
        for block in self.blocks:
            x = block(x, inputs.mask)
        logits: Tensor = self.last(x).squeeze(-1)
        return logits
