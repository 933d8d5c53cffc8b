"""Layers of the backbones against their published formulas, written out pair by pair."""

from __future__ import annotations

import torch
from torch import nn

from reki_ray.models.backbones.autoint import InteractingLayer
from reki_ray.models.backbones.dcn import CrossMatrix, CrossVector
from reki_ray.models.backbones.deepfm import CIN, factorization_machine
from reki_ray.models.backbones.dien import AUGRU, DIEN
from reki_ray.models.backbones.fibinet import SENET, BilinearInteraction
from reki_ray.models.backbones.fignn import FieldGraph
from reki_ray.models.backbones.layers import stack_fields
from tests.support.backbone_inputs import FIELDS, SIZE, inputs

M, B = 4, 3


def fields() -> torch.Tensor:
    return torch.randn(B, M, SIZE, generator=torch.Generator().manual_seed(0))


def test_history_is_a_field_as_the_mean_of_its_real_interactions() -> None:
    given = inputs(B)
    stacked = stack_fields(given)
    assert stacked.shape == (B, FIELDS + 4, SIZE)
    for row in range(B):
        real = given.history[row][given.mask[row]]
        torch.testing.assert_close(stacked[row, FIELDS + 1], real.mean(dim=0))


def test_cross_layers_of_dcn() -> None:
    torch.manual_seed(0)
    cross, x = CrossVector(SIZE, 2), torch.randn(B, SIZE)
    nn.init.normal_(cross.biases[1])
    for row in range(B):
        first = expected = x[row]
        for weight, bias in zip(cross.weights, cross.biases, strict=True):
            outer = torch.outer(first, expected)  # x_0 x_l^T
            expected = outer @ weight + bias + expected
        torch.testing.assert_close(cross(x)[row], expected)


def test_cross_layers_of_dcnv2() -> None:
    torch.manual_seed(0)
    cross, x = CrossMatrix(SIZE, 2), torch.randn(B, SIZE)
    for row in range(B):
        expected = x[row]
        for layer in cross.layers:
            assert isinstance(layer, nn.Linear)
            expected = x[row] * (layer.weight @ expected + layer.bias) + expected
        torch.testing.assert_close(cross(x)[row], expected)


def test_factorization_machine_sums_all_pairs() -> None:
    given = fields()
    expected = sum((given[:, i] * given[:, j]).sum(1) for i in range(M) for j in range(i + 1, M))
    torch.testing.assert_close(factorization_machine(given), expected)


def test_compressed_interaction_network() -> None:
    torch.manual_seed(0)
    cin, given = CIN(M, (3, 2)), fields()
    previous, pooled = given, []
    for layer in cin.layers:
        assert isinstance(layer, nn.Linear)
        rows = []
        for weight in layer.weight.view(layer.out_features, -1, M):  # (H_k-1, M) of one row
            pairs = [
                weight[i, j] * previous[:, i] * given[:, j]
                for i in range(weight.shape[0])
                for j in range(M)
            ]
            rows.append(torch.stack(pairs).sum(0))
        previous = torch.stack(rows, dim=1)
        pooled.append(previous.sum(dim=2))
    torch.testing.assert_close(cin(given), torch.cat(pooled, dim=1), atol=1e-5, rtol=1e-4)


def test_interacting_layer_attends_in_each_head() -> None:
    torch.manual_seed(0)
    heads, width = 2, 3
    layer, given = InteractingLayer(SIZE, heads, width), fields()
    query, key, value = layer.projections.weight.view(3, heads, width, SIZE)
    for row in range(B):
        e = given[row]
        mixed = []
        for head in range(heads):
            scores = (e @ query[head].T) @ (e @ key[head].T).T
            mixed.append(torch.softmax(scores, dim=1) @ (e @ value[head].T))
        expected = torch.relu(torch.cat(mixed, dim=1) + e @ layer.residual.weight.T)
        torch.testing.assert_close(layer(given)[row], expected, atol=1e-5, rtol=1e-4)


def test_senet_weighs_whole_fields() -> None:
    torch.manual_seed(0)
    senet, given = SENET(M, 2), fields()
    for row in range(B):
        narrow = torch.relu(senet.squeeze.weight @ given[row].mean(dim=1))
        weights = torch.relu(senet.excite.weight @ narrow)
        torch.testing.assert_close(senet(given)[row], weights[:, None] * given[row])


def test_bilinear_interaction_multiplies_each_pair_once() -> None:
    torch.manual_seed(0)
    layer, given = BilinearInteraction(M, SIZE), fields()
    expected = [
        (given[:, i] @ layer.weight[i]) * given[:, j] for i in range(M) for j in range(i + 1, M)
    ]
    torch.testing.assert_close(layer(given), torch.stack(expected, dim=1), atol=1e-5, rtol=1e-4)


def test_field_graph_sends_and_hears_along_weighted_edges() -> None:
    torch.manual_seed(0)
    graph, given = FieldGraph(M, SIZE, 2), fields()
    nn.init.normal_(graph.bias)
    for row in range(B):
        first = states = given[row]
        for _ in range(2):
            new = []
            for i in range(M):
                others = [j for j in range(M) if j != i]
                edges = torch.stack(
                    [graph.edges(torch.cat([first[i], first[j]]))[0] for j in others]
                )
                weights = torch.softmax(nn.functional.leaky_relu(edges), dim=0)
                sent = torch.stack([states[j] @ graph.outgoing[j] for j in others])
                heard = (weights @ sent) @ graph.incoming[i] + graph.bias
                new.append(graph.cell(heard, states[i]) + first[i])
            states = torch.stack(new)
        torch.testing.assert_close(graph(given)[row], states, atol=1e-5, rtol=1e-4)


def test_augru_with_full_attention_is_a_gru() -> None:
    torch.manual_seed(0)
    augru, gru = AUGRU(SIZE), nn.GRU(SIZE, SIZE, batch_first=True)

    def published(name: str) -> torch.Tensor:
        # torch's gates stand in the order reset, update, new, and its update gate weighs the old
        # state: its complement is the published one.
        reset, update, new = gru.get_parameter(name).detach().chunk(3)
        return torch.cat([-update, reset, new])

    with torch.no_grad():
        for layer, suffix in ((augru.inputs, "ih_l0"), (augru.state, "hh_l0")):
            layer.weight.copy_(published(f"weight_{suffix}"))
            layer.bias.copy_(published(f"bias_{suffix}"))
    steps = torch.randn(B, 5, SIZE)
    torch.testing.assert_close(augru(steps, torch.ones(B, 5)), gru(steps)[1][0])
    half = augru(steps, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).expand(B, -1))
    torch.testing.assert_close(half, gru(steps[:, :2])[1][0])


def test_dien_teaches_a_state_the_next_interaction_against_a_strange_one() -> None:
    torch.manual_seed(0)
    dien, given = DIEN(SIZE, FIELDS, mlp=(16, 8)).train(), inputs(B, augmented=False)
    kept = [given.history[row][given.mask[row]] for row in range(B)]
    losses = []
    for row in range(B):
        strange = kept[row - 1]
        states = dien.extraction(kept[row][None])[0][0]
        for step in range(1, min(len(kept[row]), len(strange))):
            own = torch.sigmoid(states[step - 1] @ kept[row][step])
            other = torch.sigmoid(states[step - 1] @ strange[step])
            losses.append(-torch.log(own) - torch.log(1 - other))
    expected = dien.auxiliary_weight * torch.stack(losses).mean()
    torch.testing.assert_close(dien(given).auxiliary, expected, atol=1e-5, rtol=1e-4)
    assert dien.eval()(given).auxiliary is None
