from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reki_ray.config import DinConfig, HeinConfig
from reki_ray.errors import ConfigError, StoreError
from reki_ray.models import bundle as bundles
from reki_ray.models.backbones import BackboneInputs, build_backbone
from reki_ray.models.backbones.din import DIN, Dice, TargetAttention
from reki_ray.models.bundle import ModelBundle, Origin
from reki_ray.models.ctr_model import Architecture, Batch, CTRModel, Knowledge
from reki_ray.models.fields import FeatureSpace

E, L, Q = 8, 6, 4
CONFIG = DinConfig(embedding=E, attention=(8, 4), mlp=(16, 8), dropout=0.0)


def inputs(samples: int, seed: int = 0, augmented: bool = True) -> BackboneInputs:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(samples, L, generator=generator) < 0.7
    return BackboneInputs(
        users=torch.randn(samples, 2, E, generator=generator),
        target=torch.randn(samples, E, generator=generator),
        history=torch.randn(samples, L, E, generator=generator) * mask.unsqueeze(-1),
        mask=mask,
        augmented=torch.randn(samples, 2, Q, generator=generator) if augmented else None,
    )


@pytest.fixture
def din() -> DIN:
    torch.manual_seed(0)
    network = DIN(CONFIG, user_fields=2, augmented=Q)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Dice):  # as after some training
                module.running_mean.normal_()
                module.running_variance.uniform_(0.5, 2.0)
                module.alpha.normal_()
    return network


@pytest.mark.parametrize("training", [False, True])
def test_batch_of_one_sample_gives_numbers_and_gradients(din: DIN, training: bool) -> None:
    din.train(training)
    one = inputs(1)
    logits = din(one)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in din.parameters() if p.grad is not None)


def test_score_does_not_depend_on_the_rest_of_the_batch(din: DIN) -> None:
    din.eval()
    many = inputs(9)
    alone = torch.cat([din(rows(many, [k])) for k in range(9)])
    torch.testing.assert_close(din(many), alone, atol=1e-6, rtol=1e-5)


def test_permuted_batch_gives_permuted_logits(din: DIN) -> None:
    order = [3, 0, 2, 4, 1]
    many = inputs(5)
    for training in (False, True):
        din.train(training)
        torch.testing.assert_close(din(rows(many, order)), din(many)[order], atol=1e-5, rtol=1e-4)


def test_history_of_padding_alone_gives_zero_interest() -> None:
    attention = TargetAttention(E, (8, 4))
    empty = torch.zeros(3, L, dtype=torch.bool)
    for training in (False, True):
        attention.train(training)
        interest = attention(torch.randn(3, E), torch.zeros(3, L, E), empty)
        assert torch.equal(interest, torch.zeros(3, E))


@pytest.mark.parametrize("training", [False, True])
def test_content_of_padding_does_not_matter(din: DIN, training: bool) -> None:
    din.train(training)
    clean = inputs(6)
    dirt = torch.where(clean.mask.unsqueeze(-1), clean.history, torch.tensor(7.0))
    torch.testing.assert_close(din(replace(clean, history=dirt)), din(clean))


def test_attention_follows_the_published_formula() -> None:
    torch.manual_seed(0)
    attention = TargetAttention(E, (8,)).eval()
    given = inputs(4)
    t = given.target.unsqueeze(1).expand(-1, L, -1)
    h = given.history
    x = attention.first(torch.cat([h, t, h - t, h * t], dim=-1))
    weights = attention.layers[0](attention.dices[0](x)) * given.mask.unsqueeze(-1)
    torch.testing.assert_close(
        attention(given.target, h, given.mask), (weights * h).sum(dim=1), atol=1e-6, rtol=1e-5
    )


def test_dice_uses_batch_statistics_in_training_and_running_ones_in_evaluation() -> None:
    dice = Dice(3)
    x = torch.randn(1000, 3) * 2 + 5
    trained = dice(x)
    expected = x * torch.sigmoid((x - x.mean(0)) / x.std(0, correction=0))  # alpha is 0
    torch.testing.assert_close(trained, expected, atol=1e-3, rtol=1e-3)
    for _ in range(200):
        dice(x)
    torch.testing.assert_close(dice.eval()(x[:1]), expected[:1], atol=1e-2, rtol=1e-2)


def test_zeroed_augmented_vectors_leave_the_logits_unchanged(din: DIN) -> None:
    plain = DIN(CONFIG, user_fields=2, augmented=0)
    weights = {k: v for k, v in din.state_dict().items() if not k.startswith("knowledge")}
    plain.load_state_dict(weights)
    given = inputs(8)
    zeroed = replace(given, augmented=torch.zeros(8, 2, Q))
    for training in (False, True):
        din.train(training)
        plain.train(training)
        assert torch.equal(din(zeroed), plain(replace(given, augmented=None)))
        assert not torch.equal(din(given), din(zeroed))


def test_unknown_backbone_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match="no backbone"):
        build_backbone("dcn", CONFIG, 0, 0)


# --- the whole network -------------------------------------------------------------------------


@pytest.fixture
def features() -> FeatureSpace:
    return FeatureSpace.build(
        items={f"m{k}": {"genre": ["A", "B"][: k % 3]} for k in range(6)},
        users=[{"gender": ["F"]}, {"gender": ["M"], "age": ["25-34"]}],
        ratings=np.array([1.0, 3.0, 5.0, np.nan], dtype=np.float32),
    )


@pytest.fixture
def bundle(features: FeatureSpace) -> ModelBundle:
    architecture = Architecture(
        backbone="din",
        din=CONFIG,
        hein=HeinConfig(hidden=8, output=Q),
        representation=5,
        id_dropout=0.3,
    )
    torch.manual_seed(0)
    model = CTRModel(architecture, features)
    return ModelBundle(model, architecture, features, L, Origin("reki_c", 0, "users", "items"))


def batch(features: FeatureSpace, samples: int = 40) -> Batch:
    generator = np.random.default_rng(0)
    ids = ["", *features.items, "never seen"]
    records = [None, *({"genre": ["A", "B", "C"][: k % 4]} for k in range(len(ids) - 1))]
    items = features.encode_items(ids, records)
    items.ids[0] = 0
    history = generator.integers(0, len(ids), (samples, L))
    ratings = features.encode_ratings(generator.choice([1.0, 3.0, 5.0, np.nan], history.shape))
    users = features.encode_users([{"gender": ["F"], "age": ["25-34"]}, {"gender": ["X"]}, None])
    targets = generator.integers(1, len(ids), samples)
    user_rows = torch.from_numpy(generator.integers(0, 3, samples))
    random = torch.Generator().manual_seed(0)
    return Batch(
        item_ids=torch.from_numpy(items.ids),
        item_attributes={k: torch.from_numpy(v) for k, v in items.attributes.items()},
        targets=torch.from_numpy(targets),
        history=torch.from_numpy(history),
        history_ratings=torch.from_numpy(np.where(history > 0, ratings, 0)),
        user_attributes={k: torch.from_numpy(v) for k, v in users.items()},
        distinct_users=3,
        users=user_rows,
        user_knowledge=Knowledge(torch.randn(3, 5, generator=random), user_rows),
        item_knowledge=Knowledge(
            torch.randn(len(ids), 5, generator=random), torch.from_numpy(targets)
        ),
    )


def test_gradient_reaches_every_parameter(bundle: ModelBundle, features: FeatureSpace) -> None:
    # Experts of zero output would hide a missing path; a positive bias keeps ReLU open.
    assert bundle.model.hein is not None
    for bank in (bundle.model.hein.shared, bundle.model.hein.user_experts):
        nn.init.constant_(bank.bias, 0.1)
    torch.manual_seed(0)
    bundle.model.train()(batch(features)).square().sum().backward()
    without = [
        name
        for name, parameter in bundle.model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_unknown_item_and_unknown_profile_value_get_a_finite_logit(
    bundle: ModelBundle, features: FeatureSpace
) -> None:
    logits: Tensor = bundle.model.eval()(batch(features))
    assert torch.isfinite(logits).all()


def test_saved_and_loaded_model_gives_the_same_bits(
    bundle: ModelBundle, features: FeatureSpace, tmp_path: Path
) -> None:
    bundle.model.train()(batch(features))  # moves the running statistics
    fingerprint = bundles.save(tmp_path, bundle)
    loaded = bundles.load(tmp_path)
    bundle.model.eval()
    assert torch.equal(loaded.model(batch(features)), bundle.model(batch(features)))
    assert loaded.features == features
    assert loaded.fingerprint == fingerprint == bundles.fingerprint(tmp_path)
    assert (loaded.arm, loaded.history, loaded.origin) == ("reki_c", L, bundle.origin)
    r = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert loaded.augment_users(r).shape == (3, Q)
    np.testing.assert_array_equal(loaded.augment_items(r), bundle.augment_items(r))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_damaged_model_is_refused(bundle: ModelBundle, tmp_path: Path, name: str) -> None:
    bundles.save(tmp_path, bundle)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StoreError, match="cannot be read"):
        bundles.load(tmp_path)


def test_representations_of_another_length_are_refused(bundle: ModelBundle) -> None:
    with pytest.raises(StoreError, match="do not fit"):
        bundle.augment_users(np.zeros((2, 7), dtype=np.float32))


def rows(given: BackboneInputs, order: list[int]) -> BackboneInputs:
    return BackboneInputs(
        users=given.users[order],
        target=given.target[order],
        history=given.history[order],
        mask=given.mask[order],
        augmented=None if given.augmented is None else given.augmented[order],
    )
