"""Fi-GNN (Li et al., CIKM 2019, arXiv 1910.05552)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reki_ray.models.backbones.autoint import InteractingLayer
from reki_ray.models.backbones.layers import stack_fields
from reki_ray.models.inputs import BackboneInputs, Output


class FieldGraph(nn.Module):
    """Gated graph network over the complete graph of the fields (the paper's section 3.4).

        A_ij = softmax_j(leaky_relu(w . [h_i, h_j])),  j other than i, from the first states
        a_i  = W_in,i sum_j A_ij W_out,j h_j + b,      h_i <- GRU(a_i, h_i) + first h_i

    Example::

        graph = FieldGraph(fields=6, size=8, steps=2)
        assert graph(torch.randn(4, 6, 8)).shape == (4, 6, 8)
    """

    itself: Tensor

    def __init__(self, fields: int, size: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.edges = nn.Linear(2 * size, 1, bias=False)
        self.outgoing = nn.Parameter(torch.empty(fields, size, size))
        self.incoming = nn.Parameter(torch.empty(fields, size, size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.cell = nn.GRUCell(size, size)
        self.register_buffer("itself", torch.eye(fields, dtype=torch.bool), persistent=False)
        for weight in (self.outgoing, self.incoming):
            nn.init.xavier_normal_(weight)

    def forward(self, first: Tensor) -> Tensor:
        """Last states (B, M, D) of first states (B, M, D)."""
        graph = self._graph(first)  # (B, M, M)
        states = first
        for _ in range(self.steps):
            sent = torch.einsum("bmd,mde->bme", states, self.outgoing)
            heard = torch.einsum("bmd,mde->bme", graph @ sent, self.incoming) + self.bias
            new = self.cell(heard.flatten(0, 1), states.flatten(0, 1))
            states = new.view_as(first) + first
        return states

    def _graph(self, states: Tensor) -> Tensor:
        # w . [h_i, h_j] is the sum of a number of i and one of j: no need to build the pairs.
        of_i, of_j = self.edges.weight.view(2, -1)
        scores = (states @ of_i).unsqueeze(2) + (states @ of_j).unsqueeze(1)  # (B, M, M)
        scores = nn.functional.leaky_relu(scores).masked_fill(self.itself, -torch.inf)
        return torch.softmax(scores, dim=2)


class FiGNN(nn.Module):
    """Self-attention, a field graph and attention over M fields (see `count_fields`).

        y = sum_i a_i y_i,    y_i = v . h_i + c,    a_i = w . h_i + d

    Example::

        model = FiGNN(fields=6, embedding_dim=8, interaction_layers=2)
        logits = model(inputs).logits  # inputs as in the example of BackboneInputs
    """

    def __init__(
        self,
        fields: int,
        embedding_dim: int,
        *,
        interaction_layers: int = 3,
        heads: int = 1,
        head_size: int = 64,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = heads * head_size
        self.states = InteractingLayer(embedding_dim, heads, head_size)
        self.graph = FieldGraph(fields, width, interaction_layers)
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(width, 1)
        self.weights = nn.Linear(width, 1)

    def forward(self, inputs: BackboneInputs) -> Output:
        """Logits (B,)."""
        states = self.dropout(self.graph(self.states(stack_fields(inputs))))  # (B, M, D)
        return Output((self.weights(states) * self.scores(states)).sum(dim=1).squeeze(-1))
