"""The configuration tree: strict, complete, and clear about what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from reki_ray.config import RekiConfig, load_config
from reki_ray.errors import ConfigError
from reki_ray.prompts.scenario import load_scenario

ROOT = Path(__file__).parents[2]
MINIMAL = "name: run\ndata: {source: {kind: movielens_100k}}\n"
CSV = "name: run\ndata: {source: {kind: csv, interactions: a, items: b, "


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_configurations_are_valid(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_workspace_defaults_to_the_name_and_can_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_config(path).root == "runs/run"
    assert load_config(path, workspace="/elsewhere").root == "/elsewhere"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            MINIMAL + "trian: {}\n",
            "trian: Extra inputs are not permitted; the nearest key is train",
        ),
        (MINIMAL + "serve: {edge: {rate_brust: 1}}\n", "serve.edge.rate_brust: Extra inputs"),
        (MINIMAL + "epochs: 3\n", "there is train.rerank.epochs and train.epochs"),
        (MINIMAL + "tune: {space: {rate: {chioce: [1]}}}\n", "the nearest key is choice"),
        (MINIMAL + "extract: {engine: {kind: openai, modl: x}}\n", "extract.engine.modl: Extra"),
        (MINIMAL + "ray: {xyzzy: 1}\n", "the keys here are address, num_cpus, object_store_mib"),
        (CSV + "columns: {itemid: x}}}\n", "data.source.columns.itemid: Extra inputs"),
        (CSV + "dialect: {seperator: ';'}}}\n", "the nearest key is separator"),
        (CSV + "columns: {timestamp_unit: sec}}}\n", "neither one of s, ms, us, ns and iso"),
        (MINIMAL + "ray: {}\nsplit: {}\nray: {}\n", "key 'ray' is in line 3 and again in line 5"),
        (MINIMAL + "split: {seed: 1, seed: 2}\n", "key 'seed' is in line 3 and again in line 3"),
        (MINIMAL + "split: {&a seed: 1, *a : 2}\n", "key 'seed' is in line 3 and again in line 3"),
        (MINIMAL + "extract: {extra_body: {1: a, 0x1: b}}\n", "key '0x1' is in line 3"),
        (MINIMAL + "train: {epochs: 1:30}\n", "train.epochs: Input should be a valid integer"),
        (MINIMAL + "train: {epochs: true}\n", "train.epochs: true and false are not numbers"),
        (MINIMAL + "train: {seeds: [0, on]}\n", "train.seeds: true and false are not"),
        (MINIMAL + "train: {buckets: {price: yes}}\n", "train.buckets: true and false are not"),
        (MINIMAL + "train: {learning_rate: .inf}\n", ".inf in line 3 is not a finite number"),
        (MINIMAL + "train: {learning_rate: 1.0e+999}\n", "in line 3 is not a finite number"),
        (MINIMAL + "train: {learning_rate: 1e999}\n", "Input should be a finite number"),
        (MINIMAL + "train: {learning_rate: nan}\n", "Input should be a finite number"),
        (MINIMAL + "split: 2020-13-45\n", "month must be in 1..12"),
        (MINIMAL + "1: 2\n", "1: Keys should be strings"),
        ("a: " + "[" * 5000, "recursion"),
        (MINIMAL + "train: {epochs: many}\n", "train.epochs: Input should be a valid integer"),
        (MINIMAL + "train: {arms: [base]}\n", "lacks fair_base"),
        (MINIMAL + "train: {arms: [fair_base, reki_i]}\n", "with extract.mode collective"),
        (MINIMAL + "train: {arms: [fair_base, reki_c_kmeans]}\n", "cluster.method hdbscan"),
        (
            MINIMAL + "cluster: {method: streakhc, users: {clusters: 400}}\n",
            "raise max_leaves to 1200",
        ),
        (MINIMAL + "split: {ratios: [0.5, 0.5, 0.5]}\n", "sum to 1"),
        ("name: run\n", "data: Field required"),
        ("- a list\n", "not a mapping"),
        ("name: [unclosed\n", "not valid YAML"),
    ],
)
def test_mistakes_name_the_key_and_the_file(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(expected)) as raised:
        load_config(path)
    assert raised.value.where == str(path)


def test_anchors_may_be_merged_and_overridden(tmp_path: Path) -> None:
    text = "ray: &ray {num_cpus: 2}\n"
    sides = (
        "cluster:\n"
        "  users: &side {min_cluster_size: 3}\n"
        "  items: {<<: *side, min_cluster_size: 4}\n"
    )
    config = load_config(write(tmp_path, MINIMAL + text + sides))
    assert (config.cluster.users.min_cluster_size, config.cluster.items.min_cluster_size) == (3, 4)


@pytest.mark.parametrize(
    ("written", "read"),
    [("010", 10), ("0o10", 8), ("0x10", 16), ("1_0", 10), ("+7", 7), ("'7'", 7), ("7.0", 7)],
)
def test_whole_numbers_are_those_of_yaml_1_2(tmp_path: Path, written: str, read: int) -> None:
    config = load_config(write(tmp_path, MINIMAL + f"train: {{epochs: {written}}}\n"))
    assert config.train.epochs == read


def test_no_field_of_a_number_takes_a_truth_or_infinity() -> None:
    for section in _sections(RekiConfig):
        for name, field in section.model_fields.items():
            if field.annotation not in (int, float, int | None, float | None):
                continue
            for wrong in (True, float("inf"), float("nan")):
                with pytest.raises(ValidationError) as raised:
                    section.model_validate({name: wrong})
                told = [e["msg"] for e in raised.value.errors() if e["loc"] == (name,)]
                assert "number" in told[0] or "integer" in told[0], (section, name, told)


@given(st.text(max_size=60))
def test_any_text_is_a_configuration_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = write(tmp_path_factory.mktemp("any"), text)
    with pytest.raises(ConfigError):
        load_config(path, train={"seeds": [1]})


def test_repeated_keys_are_refused_in_every_yaml_file(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text("din: {history: 5}\ndin: {history: 6}\n")
    with pytest.raises(ConfigError, match="key 'din' is in line 1 and again in line 2"):
        load_config(write(tmp_path, MINIMAL + "train: {tuned: tuned.yaml}\n"))
    with pytest.raises(ConfigError, match="key 'din' is in line 1"):
        load_scenario(str(tuned))


def test_no_other_module_reads_yaml() -> None:
    loads = re.compile(r"yaml\.\w*load|YAML\(")
    readers = {
        str(path.relative_to(ROOT))
        for folder in ("reki_ray", "deployments", "actors", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if loads.search(path.read_text(encoding="utf-8"))
    }
    assert readers == {"reki_ray/config/files.py"}


def test_clusters_of_k_means_have_an_arm_of_their_own(tmp_path: Path) -> None:
    arms = "cluster: {method: kmeans}\ntrain: {arms: [fair_base, reki_c_kmeans]}\n"
    assert "reki_c_kmeans" in load_config(write(tmp_path, MINIMAL + arms)).train.arms


def test_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")


def test_every_field_has_a_description() -> None:
    undescribed = [
        f"{section.__name__}.{name}"
        for section in _sections(RekiConfig)
        for name, field in section.model_fields.items()
        if not field.description and not _is_section(field.annotation) and name != "kind"
    ]
    assert undescribed == []


def _is_section(annotation: Any) -> bool:
    arguments = getattr(annotation, "__args__", ()) or (annotation,)
    return any(isinstance(a, type) and issubclass(a, BaseModel) for a in arguments)


def _sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        annotation = field.annotation
        for argument in getattr(annotation, "__args__", ()) or (annotation,):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                found |= _sections(argument)
    return found
