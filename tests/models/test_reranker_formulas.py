"""Layers of the rerankers against torch's own and against their formulas, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reki_ray.models.inputs import InputDims
from reki_ray.models.rerankers.layers import (
    Attention,
    AttentionBlock,
    CandidateEncoder,
    MaskedReader,
    masked_softmax,
)
from reki_ray.models.rerankers.listwise import DLCM, PRM, InducedBlock
from reki_ray.models.rerankers.mir import MIR, Decay, SLAttention
from tests.support.reranker_inputs import CANDIDATES, FIELDS, LENGTH, SIZE, Q, inputs, whole

B, D, HEADS, FEED_FORWARD = 4, 12, 2, 10
DIMS = InputDims(SIZE, FIELDS, Q)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_softmax_of_real_entries_alone() -> None:
    scores, mask = torch.randn(3, 4), torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]) > 0
    found = masked_softmax(scores, mask)
    torch.testing.assert_close(found[0, [0, 2, 3]], torch.softmax(scores[0, [0, 2, 3]], dim=0))
    assert found[1].tolist() == [0.0] * 4
    assert found[2].tolist() == [0.0, 1.0, 0.0, 0.0]


def copy_attention(own: Attention, of_torch: nn.MultiheadAttention) -> None:
    assert of_torch.in_proj_weight is not None
    with torch.no_grad():
        parts = [own.query.weight, own.key.weight, own.value.weight]
        of_torch.in_proj_weight.copy_(torch.cat(parts))
        of_torch.in_proj_bias.copy_(
            torch.cat([own.query.bias, torch.zeros(D), own.value.bias])  # no bias of keys
        )
        of_torch.out_proj.load_state_dict(own.output.state_dict())


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own, of_torch = Attention(D, HEADS), nn.MultiheadAttention(D, HEADS, batch_first=True)
    copy_attention(own, of_torch)
    queries, keys, mask = torch.randn(B, 3, D), torch.randn(B, CANDIDATES, D), inputs(B).mask
    expected, _ = of_torch(queries, keys, keys, key_padding_mask=~mask)
    torch.testing.assert_close(own(queries, keys, mask), expected)


def test_block_of_self_attention_is_a_layer_of_torchs_encoder() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(D, HEADS, FEED_FORWARD, dropout=0.0)
    layer = nn.TransformerEncoderLayer(D, HEADS, FEED_FORWARD, dropout=0.0, batch_first=True)
    copy_attention(block.attention, layer.self_attn)
    for own, name in (
        (block.first_norm, "norm1"),
        (block.second_norm, "norm2"),
        (block.widen, "linear1"),
        (block.narrow, "linear2"),
    ):
        for parameter in own.parameters():
            nn.init.normal_(parameter)
        layer.get_submodule(name).load_state_dict(own.state_dict())
    x, mask = torch.randn(B, CANDIDATES, D), inputs(B).mask
    expected = layer.train()(x, src_key_padding_mask=~mask)  # no fast path
    torch.testing.assert_close(block(x, x, mask), expected, atol=1e-5, rtol=1e-4)


def test_induced_block_hears_the_candidates_and_tells_them() -> None:
    torch.manual_seed(0)
    block, x = (
        InducedBlock(D, HEADS, FEED_FORWARD, inducing=3, dropout=0.0),
        torch.randn(B, CANDIDATES, D),
    )
    mask = inputs(B).mask
    for row in range(B):
        real = x[row][mask[row]][None]
        everything = torch.ones(1, real.shape[1], dtype=torch.bool)
        heard = block.gather(block.points[None], real, everything)
        points = torch.ones(1, heard.shape[1], dtype=torch.bool)
        expected = block.spread(real, heard, points)[0]
        torch.testing.assert_close(block(x, mask)[row][mask[row]], expected, atol=1e-5, rtol=1e-4)


def test_candidate_encoder_reads_every_part() -> None:
    torch.manual_seed(0)
    encoder, given = CandidateEncoder(DIMS, D, dropout=0.0), inputs(B)
    assert encoder.interest is not None
    assert encoder.of_profile is not None
    assert encoder.of_h_user is not None
    assert encoder.of_h_items is not None
    assert given.augmented_user is not None
    assert given.augmented_items is not None
    found = encoder(given)
    for row in range(B):
        past = given.history[row][given.history_mask[row]]
        for k in range(CANDIDATES):
            t = given.candidates[row, k]
            weights = torch.softmax(past @ encoder.interest.weight @ t / math.sqrt(SIZE), dim=0)
            s = weights @ past
            hidden = (
                encoder.of_items.weight @ torch.cat([t, s, t * s])
                + encoder.of_items.bias
                + encoder.of_profile.weight @ given.users[row].flatten()
                + encoder.of_h_user.weight @ given.augmented_user[row]
                + encoder.of_h_items.weight @ given.augmented_items[row, k]
            )
            expected = encoder.last(torch.relu(hidden))
            torch.testing.assert_close(found[row, k], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backwards", [False, True])
def test_reader_skips_what_is_not_there(backwards: bool) -> None:
    torch.manual_seed(0)
    layer, given = nn.GRU(SIZE, 3, batch_first=True), inputs(B)
    found = MaskedReader(layer, backwards=backwards)(given.history, given.history_mask)
    for row in range(B):
        mask = given.history_mask[row]
        steps = given.history[row][mask]
        expected = layer(steps.flip(0) if backwards else steps)[0]
        torch.testing.assert_close(found[row][mask], expected.flip(0) if backwards else expected)
        assert not found[row][~mask].any()


def test_dlcm_compares_candidates_with_the_end_of_the_list() -> None:
    torch.manual_seed(0)
    dlcm, given = DLCM(DIMS, hidden=D, heads=HEADS).eval(), inputs(B)
    x = dlcm.encoder(given)
    for row in range(B):
        real = x[row][given.mask[row]]
        steps = torch.cat([real, dlcm.abstraction(real)], dim=1)
        outputs, state = dlcm.reader.layer(steps.flip(0))
        context = torch.tanh(dlcm.context(state[0])).view(D, HEADS)
        expected = (outputs.flip(0) @ context) @ dlcm.last.weight[0]
        found = dlcm(given)[row][given.mask[row]]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_prm_gives_each_place_of_the_initial_order_its_vector() -> None:
    torch.manual_seed(0)
    prm, given = PRM(DIMS, CANDIDATES, hidden=D, heads=HEADS).eval(), whole(B)
    personal = torch.relu(prm.encoder(given))
    for row in range(B):
        x = prm.input(torch.cat([given.candidates[row], personal[row]], 1) + prm.places.weight)
        for block in prm.blocks:
            x = block(x[None], x[None], given.mask[:1])[0]
        expected = x @ prm.last.weight[0]
        torch.testing.assert_close(prm(given)[row], expected, atol=1e-5, rtol=1e-4)


def test_decay_falls_with_the_interactions_since() -> None:
    torch.manual_seed(0)
    decay, given = Decay(DIMS, D), inputs(B)
    assert decay.of_profile is not None
    found = decay(given)
    for row in range(B):
        hidden = torch.relu(decay.of_profile(given.users[row].flatten()) + decay.bias)
        theta = nn.functional.softplus(decay.last(hidden))[0]
        real = torch.flatten(given.history_mask[row].nonzero()).tolist()
        for since, place in enumerate(reversed(real)):
            expected = 1 + torch.exp(-theta * math.log2(1 + since))
            torch.testing.assert_close(found[row, place], expected)
    assert ((found >= 1) & (found <= 2)).all()


def test_set_to_list_attention_pair_by_pair() -> None:
    torch.manual_seed(0)
    layer, given = SLAttention(SIZE, 5, 7, 6), inputs(B)
    s, g, d = torch.randn(B, CANDIDATES, 5), torch.randn(B, LENGTH, 7), torch.rand(B, LENGTH) + 1
    found = layer(s, g, d, given)
    for row in range(B):
        candidates = torch.flatten(given.mask[row].nonzero()).tolist()
        past = torch.flatten(given.history_mask[row].nonzero()).tolist()

        def affinity(k: int, past_one: int, row: int = row) -> torch.Tensor:
            t, e = given.candidates[row], given.history[row]
            whole_vectors = g[row, past_one] @ layer.affinity.weight @ s[row, k]
            features = e[past_one] @ layer.feature_affinity.weight @ t[k]
            return torch.tanh(d[row, past_one] * (whole_vectors + features))

        p = {
            k: torch.tanh(
                layer.of_set(s[row, k])
                + sum(affinity(k, one) * layer.of_list(g[row, one]) for one in past)
            )
            for k in candidates
        }
        q = [
            torch.tanh(
                layer.of_list(g[row, one])
                + sum(affinity(k, one) * layer.of_set(s[row, k]) for k in candidates)
            )
            for one in past
        ]
        for k in candidates:
            among = torch.stack([p[k] @ layer.to_set.weight @ p[j] for j in candidates])
            back = torch.stack([p[k] @ layer.to_list.weight @ one for one in q])
            v = torch.softmax(among / math.sqrt(6), dim=0) @ s[row, candidates]
            w = torch.softmax(back / math.sqrt(6), dim=0) @ g[row, past]
            torch.testing.assert_close(found[row, k], torch.cat([v, w]), atol=1e-5, rtol=1e-4)


def test_mir_reads_the_history_both_ways() -> None:
    torch.manual_seed(0)
    mir, given = MIR(DIMS, hidden=D, heads=HEADS).eval(), inputs(B)
    lstm = nn.LSTM(SIZE, D, batch_first=True, bidirectional=True)
    own = {**mir.forwards.layer.state_dict()}
    own |= {f"{name}_reverse": w for name, w in mir.backwards.layer.state_dict().items()}
    lstm.load_state_dict(own)
    read = [layer(given.history, given.history_mask) for layer in (mir.forwards, mir.backwards)]
    for row in range(B):
        mask = given.history_mask[row]
        expected = lstm(given.history[row][mask])[0]
        torch.testing.assert_close(torch.cat([r[row][mask] for r in read], dim=1), expected)
