"""What every reranker must keep: the contract, on each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from reki_ray.config import RerankConfig, TrainConfig, rerank
from reki_ray.errors import ConfigError
from reki_ray.models.registry import build_reranker
from reki_ray.models.rerankers import RERANKERS, RerankerSizes, RerankInputs
from reki_ray.training.objectives import LISTS
from reki_ray.training.runs import planned
from tests.support.reranker_inputs import (
    CANDIDATES,
    LENGTH,
    SIZE,
    SIZES,
    Q,
    inputs,
    reorder,
    take,
    whole,
)

pytestmark = pytest.mark.usefixtures("one_thread")

both_modes = pytest.mark.parametrize("training", [False, True])


@pytest.fixture(params=RERANKERS)
def reranker(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_reranker(request.param, SIZES)


def real(logits: torch.Tensor, given: RerankInputs) -> torch.Tensor:
    return logits[given.mask]


def loss_of(logits: torch.Tensor, given: RerankInputs) -> torch.Tensor:
    labels = torch.zeros(given.mask.shape).masked_fill(~given.mask, -1.0)
    labels[:, 0] = 1.0
    return LISTS.loss(logits, labels)


def check_numbers(reranker: nn.Module, given: RerankInputs) -> None:
    logits = reranker(given)
    assert logits.shape == given.mask.shape
    loss_of(logits, given).backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(real(logits, given)).all()
    assert all(torch.isfinite(p.grad).all() for p in reranker.parameters() if p.grad is not None)


@both_modes
def test_one_list_of_one_candidate_gives_numbers_and_gradients(
    reranker: nn.Module, training: bool
) -> None:
    reranker.train(training)
    given = whole(1)
    assert given.augmented_items is not None
    one = take(
        given,
        candidates=given.candidates[:, :1],
        mask=given.mask[:, :1],
        augmented_items=given.augmented_items[:, :1],
    )
    check_numbers(reranker, one)


@both_modes
def test_history_of_padding_alone_gives_numbers(reranker: nn.Module, training: bool) -> None:
    reranker.train(training)
    nothing = torch.zeros(4, LENGTH, dtype=torch.bool)
    check_numbers(
        reranker, take(inputs(4), history=torch.zeros(4, LENGTH, SIZE), history_mask=nothing)
    )


def test_logits_do_not_depend_on_the_rest_of_the_batch(reranker: nn.Module) -> None:
    reranker.eval()
    many = inputs(9)
    alone = torch.cat([reranker(take(many, [k])) for k in range(9)])
    torch.testing.assert_close(real(reranker(many), many), real(alone, many), atol=1e-5, rtol=1e-4)


@both_modes
def test_permuted_batch_gives_permuted_logits(reranker: nn.Module, training: bool) -> None:
    reranker.train(training)
    order, many = [3, 0, 2, 4, 1], whole(5)
    torch.testing.assert_close(
        reranker(take(many, order)), reranker(many)[order], atol=1e-5, rtol=1e-4
    )


@both_modes
def test_content_of_padding_does_not_matter(reranker: nn.Module, training: bool) -> None:
    reranker.train(training)
    clean, seven = inputs(8), torch.tensor(7.0)
    nothing = clean.history_mask.clone()
    nothing[0] = False
    clean = replace(clean, history_mask=nothing)
    assert clean.augmented_items is not None
    dirt = take(
        clean,
        candidates=torch.where(clean.mask.unsqueeze(-1), clean.candidates, seven),
        augmented_items=torch.where(clean.mask.unsqueeze(-1), clean.augmented_items, seven),
        history=torch.where(clean.history_mask.unsqueeze(-1), clean.history, seven),
    )
    torch.testing.assert_close(real(reranker(dirt), clean), real(reranker(clean), clean))


def test_more_padding_changes_no_score(reranker: nn.Module) -> None:
    reranker.eval()
    given = inputs(8)
    assert given.augmented_items is not None
    longer = take(
        given,
        candidates=nn.functional.pad(given.candidates, (0, 0, 0, 3), value=5.0),
        mask=nn.functional.pad(given.mask, (0, 3)),
        augmented_items=nn.functional.pad(given.augmented_items, (0, 0, 0, 3), value=5.0),
        history=nn.functional.pad(given.history, (0, 0, 2, 0), value=5.0),
        history_mask=nn.functional.pad(given.history_mask, (2, 0)),
    )
    torch.testing.assert_close(
        real(reranker(longer)[:, :CANDIDATES], given),
        real(reranker(given), given),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    "seen", ["users", "candidates", "history", "augmented_user", "augmented_items"]
)
def test_every_input_is_really_seen(reranker: nn.Module, seen: str) -> None:
    """By the order, too: what moves all candidates of a list alike is no signal to a reranker."""
    reranker.eval()
    one, other = whole(6), whole(6, seed=1)
    changed = take(one, **{seen: getattr(other, seen)})
    shares, of_changed = (torch.softmax(reranker(given), dim=1) for given in (one, changed))
    assert not torch.isclose(shares, of_changed, rtol=1e-4).all(dim=1).any()


def test_candidates_are_scored_in_view_of_each_other(reranker: nn.Module) -> None:
    reranker.eval()
    given = whole(6)
    candidates = given.candidates.clone()
    candidates[:, -1] += 1.0
    before, after = reranker(given)[:, 0], reranker(take(given, candidates=candidates))[:, 0]
    assert not torch.isclose(before, after, rtol=1e-5).any()


@pytest.mark.parametrize("name", ["setrank", "mir"])
def test_rerankers_of_sets_are_permutation_equivariant(name: str) -> None:
    torch.manual_seed(0)
    reranker = build_reranker(name, SIZES).eval()
    given, order = inputs(7), [3, 1, 4, 0, 2]
    found = reranker(reorder(given, order))
    expected = reranker(given)[:, order]
    chosen = given.mask[:, order]
    torch.testing.assert_close(found[chosen], expected[chosen], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["dlcm", "prm"])
def test_rerankers_of_lists_see_the_initial_order(name: str) -> None:
    torch.manual_seed(0)
    reranker = build_reranker(name, SIZES).eval()
    given, order = whole(7), [3, 1, 4, 0, 2]
    found, expected = reranker(reorder(given, order)), reranker(given)[:, order]
    assert not torch.isclose(found, expected, rtol=1e-4).all(dim=1).any()


def test_gradient_reaches_every_parameter(reranker: nn.Module) -> None:
    reranker.train()(whole(32)).square().sum().backward()
    without = [
        name
        for name, parameter in reranker.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() < 1e-7
    ]
    assert without == []


@pytest.mark.parametrize("name", RERANKERS)
def test_zero_knowledge_leaves_the_network_as_it_is_without(name: str) -> None:
    torch.manual_seed(0)
    knowing = build_reranker(name, SIZES).eval()
    torch.manual_seed(0)
    plain = build_reranker(name, replace(SIZES, augmented=0)).eval()
    given = inputs(6)
    zeros = take(
        given, augmented_user=torch.zeros(6, Q), augmented_items=torch.zeros(6, CANDIDATES, Q)
    )
    without = replace(given, augmented_user=None, augmented_items=None)
    torch.testing.assert_close(real(knowing(zeros), given), real(plain(without), given))


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch's own GRU, on its weights
def test_is_exportable(reranker: nn.Module) -> None:
    class Flat(nn.Module):
        """Takes tensors, as exported programs do."""

        def __init__(self) -> None:
            super().__init__()
            self.reranker = reranker.eval()

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.reranker(RerankInputs(*tensors))
            return logits

    def tensors(given: RerankInputs) -> tuple[torch.Tensor | None, ...]:
        return tuple(vars(given).values())

    batch = torch.export.Dim("batch", min=2, max=4096)
    given = tensors(inputs(5))
    exported = torch.export.export(Flat(), given, dynamic_shapes=[tuple({0: batch} for _ in given)])
    more = inputs(17)
    torch.testing.assert_close(
        real(exported.module()(*tensors(more)), more),
        real(reranker(more), more),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", RERANKERS)
def test_learns_what_a_user_likes_by_their_profile(name: str) -> None:
    """The best candidate is the one nearest to the user: no single input is enough."""
    torch.manual_seed(0)
    reranker = build_reranker(name, replace(SIZES, augmented=0, user_fields=1))
    optimiser = torch.optim.Adam(reranker.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)

    def draw(lists: int) -> tuple[RerankInputs, torch.Tensor]:
        users = torch.randn(lists, 1, SIZE, generator=generator)
        candidates = torch.randn(lists, CANDIDATES, SIZE, generator=generator)
        best = (candidates * users).sum(-1).argmax(dim=1)
        everywhere = torch.ones(lists, CANDIDATES, dtype=torch.bool)
        nothing = torch.zeros(lists, LENGTH, dtype=torch.bool)
        history = torch.zeros(lists, LENGTH, SIZE)
        given = RerankInputs(users, candidates, everywhere, history, nothing, None, None)
        return given, nn.functional.one_hot(best, CANDIDATES).float()

    reranker.train()
    for _ in range(200):
        given, labels = draw(128)
        loss = LISTS.loss(reranker(given), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    given, labels = draw(1000)
    hits = reranker.eval()(given).argmax(dim=1) == labels.argmax(dim=1)
    assert hits.float().mean() > 0.4  # chance: 0.2


def test_configuration_names_exactly_the_rerankers_that_there_are() -> None:
    assert set(rerank.RERANKERS) == set(RERANKERS)


def test_wrong_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="is not a reranker"):
        TrainConfig.model_validate({"rerankers": ["listnet"]})
    with pytest.raises(ValueError, match="has duplicates"):
        TrainConfig.model_validate({"rerankers": ["prm", "prm"]})
    with pytest.raises(ValueError, match="no room for a negative"):
        RerankConfig(list_size=4, max_positives=4)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        RerankConfig.model_validate({"network": {"hidden": 10, "heads": 3}})
    with pytest.raises(ConfigError, match="cannot import"):
        build_reranker("nowhere:Network", SIZES)
    with pytest.raises(ConfigError, match="not a torch module"):
        build_reranker("builtins:repr", SIZES)


class OwnReranker(nn.Module):
    """A reranker of somebody else's: the item alone decides."""

    def __init__(self, sizes: RerankerSizes) -> None:
        super().__init__()
        self.last = nn.Linear(sizes.network.embedding, 1)

    def forward(self, given: RerankInputs) -> torch.Tensor:
        logits: torch.Tensor = self.last(given.candidates).squeeze(-1)
        return logits


def test_class_of_another_package_is_a_reranker() -> None:
    name = f"{__name__}:OwnReranker"
    config = TrainConfig.model_validate({"rerankers": [name], "arms": ["fair_base"]})
    reranker = build_reranker(config.rerankers[0], SIZES)
    assert reranker(inputs(3)).shape == (3, CANDIDATES)
    names = [run.name for run in planned(config, reranks=True)]
    assert names == [f"{name.replace(':', '.')}-fair_base-{seed}" for seed in (0, 1, 2)]
