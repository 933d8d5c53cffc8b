"""A whole reranker, knowledge included: gradients, unknown ids, gate, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reki_ray.config import GateConfig, HeinConfig
from reki_ray.errors import StoreError
from reki_ray.models import artifact as bundles
from reki_ray.models.artifact import Origin, RerankBundle
from reki_ray.models.base_model import KnowledgeVectors, ModelBatch
from reki_ray.models.features import FeatureSpace
from reki_ray.models.hein import HEIN
from reki_ray.models.rerank_model import RerankArchitecture, RerankModel
from reki_ray.models.rerankers import RERANKERS
from tests.support.model_batch import model_batch, model_features
from tests.support.reranker_inputs import CANDIDATES, LENGTH, SIZES, Q

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def features() -> FeatureSpace:
    return model_features()


@pytest.fixture(params=RERANKERS)
def bundle(request: pytest.FixtureRequest, features: FeatureSpace) -> RerankBundle:
    architecture = RerankArchitecture(
        backbone=request.param,
        network=SIZES.network,
        hein=HeinConfig(hidden=8, output=Q),
        gate=GateConfig(items=3.0, users=2.0),
        representation=5,
        id_dropout=0.3,
        reranker=SIZES.reranker,
        list_size=CANDIDATES,
    )
    torch.manual_seed(0)
    model = RerankModel(architecture, features)
    origin = Origin("reki_c", 0, "users", "items")
    return RerankBundle(model, architecture, features, LENGTH, origin)


def batch(features: FeatureSpace, lists: int = 40) -> ModelBatch:
    return model_batch(features, lists, CANDIDATES)


def real(model: RerankModel, given: ModelBatch) -> torch.Tensor:
    logits: torch.Tensor = model(given).logits
    return logits[given.targets != 0]


def test_gradient_reaches_every_parameter(bundle: RerankBundle, features: FeatureSpace) -> None:
    # Experts of zero output would hide a missing path; a positive bias keeps ReLU open.
    assert isinstance(bundle.model.hein, HEIN)
    for bank in (bundle.model.hein.shared, bundle.model.hein.user_experts):
        nn.init.constant_(bank.bias, 0.1)
    torch.manual_seed(0)
    loss = real(bundle.model.train(), batch(features)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    without = [
        name
        for name, parameter in bundle.model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_unknown_item_and_unknown_profile_value_get_a_finite_logit(
    bundle: RerankBundle, features: FeatureSpace
) -> None:
    assert torch.isfinite(real(bundle.model.eval(), batch(features))).all()


@pytest.mark.parametrize("side", ["user_knowledge", "item_knowledge"])
def test_knowledge_of_either_side_changes_the_order_of_scores(
    bundle: RerankBundle, features: FeatureSpace, side: str
) -> None:
    given = batch(features)
    knowledge: KnowledgeVectors = getattr(given, side)
    changed: dict[str, Any] = {side: KnowledgeVectors(-knowledge.vectors, knowledge.index)}
    other = replace(given, **changed)
    model = bundle.model.eval()
    one, two = (torch.softmax(model(part).logits, dim=1) for part in (given, other))
    assert not torch.isclose(one, two, rtol=1e-5).all()


def test_gate_turns_knowledge_down_where_the_id_is_well_known(
    bundle: RerankBundle, features: FeatureSpace
) -> None:
    seen: list[object] = []
    bundle.model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    given = batch(features)
    model = bundle.model.eval()
    model(given)
    inputs = seen[0]
    ids = ["", *features.items, "never seen"]
    half = {"m0": 3 / 9, "m1": 3 / 6}
    h_items = model.augment_items(given.item_knowledge.vectors)  # type: ignore[union-attr]
    h_users = model.augment_users(given.user_knowledge.vectors)  # type: ignore[union-attr]
    for row in range(4):
        past = int((given.history.items[row] != 0).sum())
        torch.testing.assert_close(
            inputs.augmented_user[row],  # type: ignore[attr-defined]
            h_users[given.users[row]] * 2 / (2 + past),
        )
        for k, target in enumerate(given.targets[row].tolist()):
            torch.testing.assert_close(
                inputs.augmented_items[row, k],  # type: ignore[attr-defined]
                h_items[target] * half.get(ids[target], 1.0),
            )


def test_saved_and_loaded_reranker_has_the_same_bits_and_gives_the_same_scores(
    bundle: RerankBundle, features: FeatureSpace, tmp_path: Path
) -> None:
    fingerprint = bundles.save(tmp_path, bundle)
    loaded = bundles.load_reranker(tmp_path)
    given, model = batch(features), bundle.model.eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    torch.testing.assert_close(loaded.model(given).logits, model(given).logits)
    assert loaded.features == features
    assert loaded.architecture == bundle.architecture
    assert loaded.fingerprint == fingerprint == bundles.fingerprint(tmp_path)
    assert (loaded.arm, loaded.history, loaded.origin) == ("reki_c", LENGTH, bundle.origin)
    r = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(loaded.augment_items(r), bundle.augment_items(r), atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {bundles.WEIGHTS, bundles.DESCRIPTION}


def test_one_kind_of_model_is_not_loaded_as_the_other(bundle: RerankBundle, tmp_path: Path) -> None:
    bundles.save(tmp_path, bundle)
    with pytest.raises(StoreError, match="cannot be read"):
        bundles.load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_damaged_reranker_is_refused(bundle: RerankBundle, tmp_path: Path, name: str) -> None:
    bundles.save(tmp_path, bundle)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StoreError, match="cannot be read"):
        bundles.load_reranker(tmp_path)
