"""The names that `reki_ray` offers, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import reki_ray
from reki_ray.core import imports
from reki_ray.errors import ConfigError


def modules_after(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_no_dependency() -> None:
    assert not modules_after("import reki_ray") & {"ray", "torch", "numpy", "pyarrow", "pydantic"}


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("HEIN", {"ray", "vllm", "fastapi", "matplotlib", "openai"}),
        ("VersionStore", {"ray", "vllm", "fastapi", "matplotlib", "openai"}),
        ("Workspace", {"ray", "torch", "vllm", "fastapi", "matplotlib", "openai"}),
        ("load_config", {"ray", "torch", "vllm", "fastapi", "matplotlib", "openai"}),
        ("encode_texts", {"vllm", "fastapi", "matplotlib", "openai"}),
        ("extract_knowledge", {"torch", "vllm", "fastapi", "matplotlib", "openai"}),
        ("run", {"ray", "torch", "vllm", "fastapi", "matplotlib", "openai"}),
    ],
)
def test_a_name_loads_only_what_it_needs(name: str, absent: set[str]) -> None:
    assert not modules_after(f"from reki_ray import {name}") & absent


def test_dir_lists_every_name() -> None:
    assert set(reki_ray.__all__) <= set(dir(reki_ray))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'hein'"):
        reki_ray.hein  # noqa: B018  # the access is the test


def test_a_missing_package_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "reki_ray.evaluation.plots", raising=False)
    with pytest.raises(ConfigError, match=r"matplotlib is not installed .* 'reki-ray\[report\]'"):
        imports.require("reki_ray.evaluation.plots")
    with pytest.raises(ConfigError, match=r"reki-ray\[report\]"):
        imports.load("reki_ray.evaluation.plots:plot")
