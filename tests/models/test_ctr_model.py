"""The whole network, knowledge included, on every backbone: gradients, unknown ids, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reki_ray.config import GateConfig, HeinConfig
from reki_ray.errors import StoreError
from reki_ray.models import artifact as bundles
from reki_ray.models.artifact import ModelBundle, Origin
from reki_ray.models.backbones import BACKBONES, BackboneInputs
from reki_ray.models.base_model import Architecture, History, ModelBatch
from reki_ray.models.ctr_model import CTRModel
from reki_ray.models.features import FeatureSpace
from reki_ray.models.hein import HEIN
from tests.support.backbone_inputs import CONFIG, LENGTH, Q
from tests.support.model_batch import model_batch, model_features


@pytest.fixture
def features() -> FeatureSpace:
    return model_features()


@pytest.fixture(params=BACKBONES)
def bundle(request: pytest.FixtureRequest, features: FeatureSpace) -> ModelBundle:
    architecture = Architecture(
        backbone=request.param,
        network=CONFIG,
        hein=HeinConfig(hidden=8, output=Q, enrich_items=True, alignment_weight=0.1),
        gate=GateConfig(items=3.0, users=2.0),
        representation=5,
        id_dropout=0.3,
    )
    torch.manual_seed(0)
    model = CTRModel(architecture, features)
    return ModelBundle(model, architecture, features, LENGTH, Origin("reki_c", 0, "users", "items"))


def batch(features: FeatureSpace, samples: int = 40) -> ModelBatch:
    return model_batch(features, samples)


def test_gradient_reaches_every_parameter(bundle: ModelBundle, features: FeatureSpace) -> None:
    # Experts of zero output would hide a missing path; a positive bias keeps ReLU open.
    assert isinstance(bundle.model.hein, HEIN)
    for bank in (bundle.model.hein.shared, bundle.model.hein.user_experts):
        nn.init.constant_(bank.bias, 0.1)
    torch.manual_seed(0)
    output = bundle.model.train()(batch(features))
    loss = output.logits.square().sum()
    (loss if output.auxiliary is None else loss + output.auxiliary).backward()
    without = [
        name
        for name, parameter in bundle.model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_unknown_item_and_unknown_profile_value_get_a_finite_logit(
    bundle: ModelBundle, features: FeatureSpace
) -> None:
    assert torch.isfinite(bundle.model.eval()(batch(features)).logits).all()


def test_saved_and_loaded_model_has_the_same_bits_and_gives_the_same_scores(
    bundle: ModelBundle, features: FeatureSpace, tmp_path: Path
) -> None:
    bundle.model.train()(batch(features))  # moves the running statistics
    fingerprint = bundles.save(tmp_path, bundle)
    loaded = bundles.load(tmp_path)
    bundle.model.eval()
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    torch.testing.assert_close(
        loaded.model(batch(features)).logits, bundle.model(batch(features)).logits
    )
    assert loaded.features == features
    assert loaded.fingerprint == fingerprint == bundles.fingerprint(tmp_path)
    assert (loaded.arm, loaded.history, loaded.origin) == ("reki_c", LENGTH, bundle.origin)
    r = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert loaded.augment_users(r).shape == (3, Q)
    np.testing.assert_allclose(loaded.augment_items(r), bundle.augment_items(r), atol=1e-6)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_damaged_model_is_refused(bundle: ModelBundle, tmp_path: Path, name: str) -> None:
    bundles.save(tmp_path, bundle)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StoreError, match="cannot be read"):
        bundles.load(tmp_path)


def test_representations_of_another_length_are_refused(bundle: ModelBundle) -> None:
    with pytest.raises(StoreError, match="do not fit"):
        bundle.augment_users(np.zeros((2, 7), dtype=np.float32))


def test_gate_turns_knowledge_down_where_the_id_is_well_known(
    bundle: ModelBundle, features: FeatureSpace
) -> None:
    model, given = bundle.model.eval(), batch(features)
    augmented = torch.ones(len(given.item_ids), Q)
    items = model.embed_items(given.item_ids, given.item_attributes, augmented)
    ids = ["", *features.items, "never seen"]
    expected = [3 / (3 + {"m0": 6, "m1": 3}.get(name, 0)) for name in ids]
    torch.testing.assert_close(items.gates, torch.tensor(expected))
    mask = torch.tensor([[True] * LENGTH, [False] * LENGTH, [True, True] + [False] * (LENGTH - 2)])
    targets = torch.tensor([ids.index("m0"), ids.index("m1"), ids.index("never seen")])
    seen: list[BackboneInputs] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.output(
        items=items,
        targets=targets,
        history=History(mask.int(), mask.int(), mask.int()),
        profile=model.profile(given.user_attributes, given.distinct_users)[:1].expand(3, -1, -1),
        h_users=torch.ones(3, Q),
        h_items=torch.ones(3, Q),
    )
    gated = seen[0].augmented
    assert gated is not None
    both = [[2 / (2 + LENGTH), 3 / 9], [1.0, 0.5], [0.5, 1.0]]
    torch.testing.assert_close(gated[:, :, 0], torch.tensor(both))


def test_enriched_item_holds_its_knowledge_by_how_little_is_known_of_it(
    bundle: ModelBundle, features: FeatureSpace
) -> None:
    model, given = bundle.model.eval(), batch(features)
    h = torch.randn(len(given.item_ids), Q, generator=torch.Generator().manual_seed(0))
    items = model.embed_items(given.item_ids, given.item_attributes, h)
    without = model.embed_items(given.item_ids, given.item_attributes, torch.zeros_like(h))
    expected = items.gates[:, None] * h @ model.enrichment.weight.T
    expected[0] = 0  # padding stays zero
    torch.testing.assert_close(items.vectors - without.vectors, expected)


def test_dropped_id_counts_as_never_seen(bundle: ModelBundle, features: FeatureSpace) -> None:
    model, given = bundle.model.train(), batch(features)
    torch.manual_seed(1)
    nothing = torch.zeros(len(given.item_ids), Q)
    items = model.embed_items(given.item_ids, given.item_attributes, nothing)
    model.eval()
    known = model.embed_items(given.item_ids, given.item_attributes, nothing)
    changed = ((items.vectors - known.vectors).abs() > 1e-6).any(dim=1)
    assert changed.any()
    assert (items.gates[changed] == 1).all()
    torch.testing.assert_close(items.gates[~changed], known.gates[~changed])
