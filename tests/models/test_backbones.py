"""What every backbone must keep: the contract, on each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from reki_ray.config import NetworkConfig, TrainConfig
from reki_ray.config.network import BACKBONES as NAMES
from reki_ray.errors import ConfigError
from reki_ray.models.backbones import BACKBONES, BackboneInputs, Output
from reki_ray.models.backbones.layers import Dice
from reki_ray.models.registry import build_backbone
from reki_ray.training.runs import Run
from tests.support.backbone_inputs import CONFIG, FIELDS, LENGTH, SIZE, Q, inputs, rows

pytestmark = pytest.mark.usefixtures("one_thread")


both_modes = pytest.mark.parametrize("training", [False, True])


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    network = build_backbone(request.param, CONFIG, FIELDS, Q)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Dice):  # as after some training
                module.running_mean.normal_()
                module.running_variance.uniform_(0.5, 2.0)
                module.alpha.normal_()
    return network


@both_modes
def test_batch_of_one_sample_gives_numbers_and_gradients(
    backbone: nn.Module, training: bool
) -> None:
    output = backbone.train(training)(inputs(1))
    assert output.logits.shape == (1,)
    loss = output.logits.sum() + (0 if output.auxiliary is None else output.auxiliary)
    loss.backward()
    assert torch.isfinite(output.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


@both_modes
def test_history_of_padding_alone_gives_numbers(backbone: nn.Module, training: bool) -> None:
    empty = replace(
        inputs(4),
        history=torch.zeros(4, LENGTH, SIZE),
        mask=torch.zeros(4, LENGTH, dtype=torch.bool),
    )
    output = backbone.train(training)(empty)
    output.logits.sum().backward()
    assert torch.isfinite(output.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


def test_logit_does_not_depend_on_the_rest_of_the_batch(backbone: nn.Module) -> None:
    backbone.eval()
    many = inputs(9)
    alone = torch.cat([backbone(rows(many, [k])).logits for k in range(9)])
    torch.testing.assert_close(backbone(many).logits, alone, atol=1e-5, rtol=1e-4)


@both_modes
def test_permuted_batch_gives_permuted_logits(backbone: nn.Module, training: bool) -> None:
    backbone.train(training)
    order = [3, 0, 2, 4, 1]
    many = inputs(5)
    torch.testing.assert_close(
        backbone(rows(many, order)).logits, backbone(many).logits[order], atol=1e-5, rtol=1e-4
    )


@both_modes
def test_content_of_padding_does_not_matter(backbone: nn.Module, training: bool) -> None:
    backbone.train(training)
    clean = inputs(6)
    dirt = torch.where(clean.mask.unsqueeze(-1), clean.history, torch.tensor(7.0))
    torch.testing.assert_close(
        backbone(replace(clean, history=dirt)).logits, backbone(clean).logits
    )


@pytest.mark.parametrize("seen", ["users", "target", "history", "augmented"])
def test_every_input_is_really_seen(backbone: nn.Module, seen: str) -> None:
    backbone.eval()
    one, other = inputs(6), inputs(6, seed=1)
    changed: BackboneInputs = replace(one, **{seen: getattr(other, seen)})
    assert not torch.isclose(backbone(one).logits, backbone(changed).logits).all()


def test_gradient_reaches_every_parameter(backbone: nn.Module) -> None:
    output = backbone.train()(inputs(32))
    loss = output.logits.square().sum()
    (loss if output.auxiliary is None else loss + output.auxiliary).backward()
    without = [
        name
        for name, parameter in backbone.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch's own GRU, on its weights
def test_is_exportable(backbone: nn.Module) -> None:
    class Flat(nn.Module):
        """Takes tensors, as exported programs do."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone.eval()

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.backbone(BackboneInputs(*tensors)).logits
            return logits

    given = inputs(5)
    tensors = (given.users, given.target, given.history, given.mask, given.augmented)
    batch = torch.export.Dim("batch", min=2, max=4096)
    exported = torch.export.export(
        Flat(), tensors, dynamic_shapes=[tuple({0: batch} for _ in tensors)]
    )
    more = inputs(17)
    torch.testing.assert_close(
        exported.module()(more.users, more.target, more.history, more.mask, more.augmented),
        backbone(more).logits,
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_learns_an_interaction_of_user_and_item(name: str) -> None:
    """The label is the sign of u . t: it depends on no sum over parts of a sample."""
    torch.manual_seed(0)
    network = build_backbone(name, CONFIG, FIELDS, 0)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)

    def draw(samples: int) -> tuple[BackboneInputs, torch.Tensor]:
        users, target = torch.randn(2, samples, 1, SIZE, generator=generator)
        labels = (users[:, 0] * target[:, 0]).sum(1) > 0
        return (
            BackboneInputs(
                users=users.expand(-1, FIELDS, -1),
                target=target[:, 0],
                history=torch.zeros(samples, LENGTH, SIZE),
                mask=torch.zeros(samples, LENGTH, dtype=torch.bool),
                augmented=None,
            ),
            labels.float(),
        )

    network.train()
    for _ in range(100):
        given, labels = draw(128)
        loss = nn.functional.binary_cross_entropy_with_logits(network(given).logits, labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    given, labels = draw(2000)
    correct = (network.eval()(given).logits > 0) == (labels > 0)
    assert correct.float().mean() > 0.65


def test_configuration_names_exactly_the_backbones_that_there_are() -> None:
    assert set(NAMES) == set(BACKBONES)


def test_unknown_backbone_is_a_wrong_configuration() -> None:
    with pytest.raises(ValueError, match="is not a backbone"):
        TrainConfig.model_validate({"backbones": ["dcn"]})
    with pytest.raises(ConfigError, match="cannot import"):
        build_backbone("nowhere:Network", CONFIG, 0, 0)


class OwnNetwork(nn.Module):
    """A backbone of somebody else's: the item alone decides."""

    def __init__(self, config: NetworkConfig, user_fields: int, augmented: int) -> None:
        super().__init__()
        self.last = nn.Linear(config.embedding, 1)

    def forward(self, given: BackboneInputs) -> Output:
        return Output(self.last(given.target).squeeze(-1))


def test_class_of_another_package_is_a_backbone() -> None:
    name = f"{__name__}:OwnNetwork"
    config = TrainConfig.model_validate({"backbones": [name], "hein": {"output": 16}})
    network = build_backbone(config.backbones[0], CONFIG, FIELDS, Q)
    assert network(inputs(3)).logits.shape == (3,)
    assert Run(name, "reki_c", 0).name == f"{name.replace(':', '.')}-reki_c-0"
    with pytest.raises(ConfigError, match="not a torch module"):
        build_backbone("builtins:max", 1, 2, 3)  # type: ignore[arg-type]


def test_augmented_vectors_that_are_fields_need_the_length_of_an_embedding() -> None:
    wrong = {"hein": {"output": 16}, "arms": ["fair_base"]}
    assert TrainConfig.model_validate({"backbones": ["din"], **wrong}).hein.output == 16
    with pytest.raises(ValueError, match="the same length"):
        TrainConfig.model_validate({"backbones": ["dcnv2"], **wrong})
