"""Spaces of `reki tune`, the configuration's own wishes, and settings that one backbone has."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState
from pydantic import ValidationError
from ray.tune.search import Searcher
from rich.console import Console

from reki_ray.cli.views.trials import search_tables
from reki_ray.config import Domain, HeinConfig, RekiConfig, TrainConfig, TuneConfig, load_config
from reki_ray.config.keys import flat, merged, nested
from reki_ray.config.network import BACKBONES
from reki_ray.config.train import tunable_keys
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.training.runs import Run, fingerprint
from reki_ray.tuning import results, space
from reki_ray.tuning.results import Search, Trial
from reki_ray.tuning.searcher import decoded, encoded, open_study, within
from reki_ray.tuning.trial import SETTINGS


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arm", ["base", "fair_base", "title_text", "reki_c"])
def test_declared_spaces_are_valid_settings(backbone: str, arm: Any) -> None:
    found = space.space_of(TuneConfig(), backbone, arm)
    assert set(found) <= set(tunable_keys())
    for key, domain in found.items():
        for value in domain.probes():
            if domain.int is not None or key not in space.SHARED or domain.choice is not None:
                changed = space.with_settings(TrainConfig(), backbone, {key: value})
                assert space.values(changed, [key]) == {key: value}
    assert any(key.startswith("hein.") for key in found) == (arm in ("title_text", "reki_c"))
    assert ("history" in found) == (arm != "base")
    assert ("gate.users" in found) == (arm == "reki_c")
    assert ("network.attention" in found) == (backbone == "din")


def test_configuration_narrows_and_widens_the_space() -> None:
    config = TuneConfig.model_validate(
        {
            "space": {
                "network.dropout": {"choice": [0.1, 0.2]},
                "history": None,
                "warmup_share": {"uniform": [0, 0.2]},
                "network.cin": {"choice": [[8]]},
            },
            "only": ["network.*", "history", "warmup_share"],
        }
    )
    found = space.space_of(config, "din", "fair_base")
    assert set(found) == {
        "network.attention",
        "network.dropout",
        "network.embedding",
        "network.mlp",
        "warmup_share",
    }
    assert found["network.dropout"].choice == (0.1, 0.2)
    with pytest.raises(ConfigError, match="nothing to search"):
        space.space_of(TuneConfig(only=("hein.*",)), "din", "fair_base")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"network.dropuot": {"choice": [0.1]}}, "'network.dropuot'; the nearest is 'network.drop"),
        ({"workers": {"choice": [1]}}, "has no key 'workers'"),
        ({"network.dropout": {"uniform": [0, 1.5]}}, "network.dropout cannot be 1.5"),
        ({"history": {"uniform": [10, 50]}}, "history cannot be 22.7"),
        ({"network.mlp": {"choice": [[8], "wide"]}}, "network.mlp cannot be 'wide'"),
        ({"learning_rate": {"loguniform": [0, 1]}}, "needs bounds above 0"),
        ({"learning_rate": {"uniform": [2, 1]}}, "is empty"),
        ({"learning_rate": {"uniform": [1, 2], "int": [1, 2]}}, "not uniform, int"),
        ({"learning_rate": {}}, "not none"),
        ({"learning_rate": {"choice": []}}, "choice is empty"),
    ],
)
def test_impossible_wishes_are_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TuneConfig.model_validate({"space": wish})
    assert message in str(caught.value)


def test_hein_output_follows_the_embedding_where_vectors_are_fields() -> None:
    train = TrainConfig(backbones=("din", "dcnv2"))
    changed = space.with_settings(train, "dcnv2", {"network.embedding": 16})
    assert (changed.network.embedding, changed.hein.output) == (16, 16)
    assert space.with_settings(train, "din", {"network.embedding": 16}).hein.output == 32
    assert changed.backbones == ("dcnv2",)


def test_nothing_is_aligned_without_shared_experts() -> None:
    train = TrainConfig(hein=HeinConfig(alignment_weight=0.1))
    assert space.with_settings(train, "din", {"hein.kind": "mlp"}).hein.alignment_weight == 0
    assert space.with_settings(train, "din", {"hein.kind": "mixture"}).hein.alignment_weight == 0.1


def test_trees_and_dotted_keys_are_the_same() -> None:
    tree = {"history": 5, "network": {"mlp": [8], "dropout": 0.1}}
    assert nested(flat(tree)) == tree
    over = merged(tree, {"network": {"mlp": [4]}})
    assert over == {"history": 5, "network": {"mlp": [4], "dropout": 0.1}}
    assert tree["network"]["mlp"] == [8]  # type: ignore[index]


def test_tuned_settings_hold_for_their_backbone_alone() -> None:
    plain = TrainConfig(backbones=("din", "dcnv2"))
    tuned = TrainConfig(
        backbones=("din", "dcnv2"), tuned={"din": {"history": 50, "network": {"dropout": 0.4}}}
    )
    assert tuned.of("din").history == 50
    assert tuned.of("din").network.dropout == 0.4
    assert tuned.of("din").network.mlp == plain.network.mlp
    assert tuned.of("dcnv2").history == 30
    for backbone, same in (("din", False), ("dcnv2", True)):
        run = Run(backbone, "fair_base", 0)
        assert (fingerprint(plain, run, []) == fingerprint(tuned, run, [])) == same


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ({"din": {"network": {"dropot": 1}}}, "train.tuned.din has no key 'network.dropot'"),
        ({"din": {"seeds": [1]}}, "has no key 'seeds'"),
        (
            {"din": {"network": {"dropout": 2}}},
            "din: network.dropout: Input should be less",
        ),
        (
            {"dcnv2": {"network": {"embedding": 16}}},
            "dcnv2: its settings: Value error, train.h",
        ),
        ({"dine": {}}, "'dine' is not a backbone"),
    ],
)
def test_impossible_tuned_settings_are_refused(tuned: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate({"tuned": tuned})
    assert message in str(caught.value)


def a_search(**changes: Any) -> Search:
    domains = {"history": Domain(choice=(10, 20)), "network.dropout": Domain(uniform=(0, 0.5))}
    given = {"fingerprint": "f" * 64, "backbone": "din", "arm": "fair_base", "seed": 0}
    return Search.model_validate({**given, "space": domains, **changes})


def test_best_settings_are_written_and_read_by_a_configuration(
    tmp_path: Path, workspace: Workspace
) -> None:
    trials = [
        Trial(number=0, settings={"history": 10}, configured=True, quality=0.7, valid_auc=0.7),
        Trial(number=1, settings={"history": 20, "network.dropout": 0.4}, quality=0.8),
        Trial(number=2, settings={"history": 20}, status="failed", error="no memory"),
    ]
    written = results.write_tuned(a_search(trials=trials), TrainConfig(), workspace, tmp_path / "t")
    assert written == str(tmp_path / "t" / "din.yaml")
    search = a_search(backbone="dcnv2", trials=[Trial(number=0, settings={}, quality=-0.6)])
    search.trials[0].settings = {"network.embedding": 16}
    results.write_tuned(search, TrainConfig(), workspace, tmp_path / "t")
    tree = {"name": "a", "data": {"source": {"kind": "movielens_100k"}}, "train": {"tuned": "t"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "c.yaml")
    assert config.train.tuned == {
        "din": {"history": 20, "network": {"dropout": 0.4}},
        "dcnv2": {"network": {"embedding": 16}, "hein": {"output": 16}},
    }
    assert RekiConfig.model_validate(config.model_dump(mode="json")) == config
    for name, todo in (("nowhere", "reki tune --out"), ("t", "Keep one of them")):
        (tmp_path / "t" / "again.yaml").write_text("din: {}")
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**tree, "train": {"tuned": name}}))
        with pytest.raises(ConfigError, match=todo):
            load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="one file cannot hold"):
        results.check_target(tmp_path / "one.yaml", ["din", "dcnv2"])


def test_nothing_is_suggested_twice_and_a_searched_space_ends(workspace: Workspace) -> None:
    domains = {"history": Domain(choice=(10, 20)), "network.mlp": Domain(choice=([8], [16, 8]))}
    known = Trial(number=0, settings={"history": 10, "network.mlp": [8]}, quality=0.6)
    search = a_search(space=domains)
    configured = {"history": 30, "network.mlp": [8]}  # not a point of the space
    with open_study(search, workspace) as study:
        study.start("known", known.settings)
        study.finish("known", known)
        study.configured = configured
        suggested = []
        for number in range(4):
            suggestion = study.suggest(str(number))
            assert isinstance(suggestion, dict)
            suggested.append(suggestion[SETTINGS])
            settings = suggestion[SETTINGS]
            study.finish(str(number), Trial(number=number + 1, settings=settings, quality=0.5))
        assert suggested[0] == configured
        points = [{"history": h, "network.mlp": m} for h in (10, 20) for m in ([8], [16, 8])]
        assert sorted(map(str, suggested[1:])) == sorted(map(str, points[1:]))
        assert str(study.suggest("5")) == Searcher.FINISHED
    assert search.size == 4
    with open_study(a_search(space=domains), workspace) as study:
        assert study.start("6") is None


def test_trials_survive_a_kill_and_those_of_an_earlier_release_are_taken_over(
    workspace: Workspace,
) -> None:
    trials = [
        Trial(number=0, settings={"history": 30, "network.dropout": 0.1}, quality=0.6),
        Trial(number=1, settings={"history": 10, "network.dropout": 0.5}, quality=0.7),
        Trial(number=2, settings={"history": 20, "network.dropout": 0.2}, status="failed"),
    ]
    old = a_search(trials=trials)
    workspace.write_json(f"tune/{old.name}.json", old.model_dump(mode="json"))
    resumed = a_search()
    with open_study(resumed, workspace) as study:
        assert resumed == old
        study.start("a")  # killed: neither has ended
        study.start("b")
        settings = study.start("c")
        assert settings is not None
        study.finish("c", Trial(number=3, settings=dict(settings), quality=0.8))
    again = a_search()
    with open_study(again, workspace):
        assert again.trials == resumed.trials
    assert [trial.number for trial in again.tried] == [0, 1, 3]
    workspace.write_text(f"tune/{old.name}.journal", "no journal")
    with pytest.raises(ConfigError, match="cannot be read"), open_study(a_search(), workspace):
        pass


def test_points_survive_the_way_to_optuna_and_back() -> None:
    domains = {"gate.items": Domain(choice=(None, 5.0)), "history": Domain(int=(1, 9))}
    settings = {"gate.items": None, "history": 3}
    assert decoded(domains, encoded(domains, settings)) == settings
    assert within(domains, settings)
    assert not within(domains, {**settings, "history": 10})
    assert not within(domains, {"history": 3})


def test_a_diverged_trial_is_not_suggested_again_and_the_sampler_ignores_it(
    workspace: Workspace,
) -> None:
    domains = {"history": Domain(choice=(10, 20))}
    diverged = Trial(number=0, settings={"history": 10}, status="diverged", error="diverged in ...")
    failed = Trial(number=1, settings={"history": 20}, status="failed", error="no memory")
    search = a_search(space=domains, trials=[diverged, failed])
    assert (search.finished, search.tried) == ([], [diverged])
    workspace.write_json(f"tune/{search.name}.json", search.model_dump(mode="json"))
    with open_study(search, workspace) as study:
        assert study.start("a") == {"history": 20}
        study.finish("a", Trial(number=2, settings={"history": 20}, status="diverged", error="..."))
        assert study.start("b") is None
        assert not study.optuna_study.get_trials(states=[TrialState.COMPLETE])


def test_without_an_auc_the_log_loss_is_told_and_selects() -> None:
    trials = [
        Trial(number=0, settings={"history": 10}, quality=-0.7, valid_logloss=0.7),
        Trial(number=1, settings={"history": 20}, quality=-0.5, valid_logloss=0.5),
    ]
    search = a_search(trials=trials)
    assert search.best is search.trials[1]
    assert search.best.score == "log-loss 0.5000"
    stream = io.StringIO()
    Console(file=stream, width=120).print(search_tables([search]))
    assert stream.getvalue().index("0.5000") < stream.getvalue().index("0.7000")
