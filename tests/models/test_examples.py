"""Public networks: their examples run, and their constructors take few, plain arguments."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from reki_ray import models
from reki_ray.config import HeinConfig, NetworkConfig, RerankNetworkConfig
from reki_ray.models.backbones import BACKBONES
from reki_ray.models.base_model import EmbeddedModel
from reki_ray.models.hein import HEIN, Adaptor
from reki_ray.models.rerankers import RERANKERS

MOST_ARGUMENTS = 7


def modules() -> Iterator[ModuleType]:
    for module in pkgutil.walk_packages(models.__path__, f"{models.__name__}."):
        yield importlib.import_module(module.name)


PUBLIC: dict[str, type[Any]] = {
    name: value
    for module in modules()
    for name, value in vars(module).items()
    if inspect.isclass(value)
    and value.__module__.startswith(models.__name__)
    and not name.startswith("_")
}
NETWORKS = {
    name: value
    for name, value in PUBLIC.items()
    if issubclass(value, nn.Module)
    and not issubclass(value, EmbeddedModel)  # built of an architecture and vocabularies
    and value is not Adaptor  # abstract
}
INPUTS = {name: "RerankInputs" for name, value in NETWORKS.items() if "rerank" in value.__module__}


def run_example(cls: type[Any], names: dict[str, Any]) -> None:
    docstring = inspect.cleandoc(cls.__dict__["__doc__"])
    example = re.search(r"^Example::\n\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    assert example, f"{cls.__name__} has no Example"
    exec(textwrap.dedent(example[1]), names)


@pytest.mark.parametrize("name", NETWORKS)
def test_example_runs(name: str) -> None:
    torch.manual_seed(0)
    names = {**PUBLIC, "torch": torch, "nn": nn}
    run_example(PUBLIC[INPUTS.get(name, "BackboneInputs")], names)  # defines `inputs`
    run_example(NETWORKS[name], names)


@pytest.mark.parametrize("name", NETWORKS)
def test_constructor_has_few_arguments_and_no_configuration(name: str) -> None:
    parameters = inspect.signature(NETWORKS[name]).parameters.values()
    assert len(parameters) <= MOST_ARGUMENTS
    assert not [p for p in parameters if "Config" in str(p.annotation)]


@pytest.mark.parametrize("network", [HEIN, *BACKBONES.values(), *RERANKERS.values()])
def test_defaults_are_those_of_the_configuration(network: type[nn.Module]) -> None:
    defaults: dict[str, Any] = {**dict(HeinConfig()), **dict(NetworkConfig())}
    if network in RERANKERS.values():
        defaults |= dict(RerankNetworkConfig())
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(network).parameters.items()
        if parameter.default is not parameter.empty and name in defaults
    }
    assert given == {name: defaults[name] for name in given}
