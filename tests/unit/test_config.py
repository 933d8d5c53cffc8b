"""The configuration tree: strict, complete, and clear about what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from reki_ray.config import RekiConfig, load_config
from reki_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = "name: run\ndata: {source: {kind: movielens_100k}}\n"


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
        (MINIMAL + "trian: {}\n", "trian: Extra inputs"),
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
        ("- a list\n", "no mapping"),
        ("name: [unclosed\n", "no valid YAML"),
    ],
)
def test_mistakes_name_the_key_and_the_file(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(expected)) as raised:
        load_config(path)
    assert raised.value.where == str(path)


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
