"""Commands and options that scripts use stay; new ones may come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from reki_ray.cli.main import app

COMMANDS = {
    "ab": "NAME --config -c --workspace --since --window --clicks --json",
    "bench": "NAME",
    "cluster": "--config -c --workspace --force --json",
    "compact": "VERSION --config -c --workspace --json",
    "doctor": "--cluster --json",
    "encode": "--config -c --workspace --force --json",
    "evaluate": "--config -c --workspace --arms --backbones --rerankers --seeds --force --json",
    "experiment start": "NAME VARIANTS --config -c --workspace --json",
    "experiment stop": "--config -c --workspace --json",
    "export": "--config -c --version --workspace --json",
    "extract": "--config -c --workspace --force --json",
    "import-knowledge": "FILE --config -c --workspace --kind --source --strict --json",
    "ingest": "--config -c --workspace --force --json",
    "launch down": "FILE --json",
    "launch status": "FILE --json",
    "launch up": "FILE --attempts --wait-minutes --restart --no-restart",
    "plan": "--config -c --workspace --users --items --tokens-per-second "
    "--prefill-tokens-per-second --engines --measure --no-measure --json",
    "promote": "VERSION --config -c --expected --workspace --json",
    "publish": "--config -c --workspace --arm --promote --no-promote --force --json",
    "report": "--config -c --workspace --force --json",
    "rollback": "--config -c --expected --workspace --json",
    "run": "--config -c --workspace --until --force --json",
    "serve": "--config -c --workspace",
    "status": "--config -c --workspace --json",
    "submit": "FILE --again --detach",
    "sweep": "--config -c --vary --workspace --until --json",
    "train": "--config -c --workspace --force --json",
    "tune": "--config -c --workspace --backbones --arm --trials --concurrency --seed --out --json",
    "update": "EVENTS --config -c --items --users --workspace --json",
    "versions": "--config -c --workspace --json",
}
"""Arguments in capitals, in their order, then options."""


def _commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not hasattr(group, "commands"):
        yield name, group
        return
    for part, command in group.commands.items():
        yield from _commands(command, f"{name} {part}".strip())


FOUND = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_keeps_its_arguments_and_options(name: str) -> None:
    wanted = COMMANDS[name].split()
    parameters = FOUND[name].params
    options = {
        option
        for one in parameters
        if one.param_type_name == "option"
        for option in (*one.opts, *one.secondary_opts)
    }
    arguments = [one.name for one in parameters if one.param_type_name == "argument"]
    assert arguments == [word.lower() for word in wanted if word.isupper()]
    assert {word for word in wanted if word.startswith("-")} <= options


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_new_is_required(name: str) -> None:
    known = {word.lstrip("-").replace("-", "_").lower() for word in COMMANDS[name].split()}
    assert {one.name for one in FOUND[name].params if one.required} <= known


def test_all_commands_take_the_traceback_option() -> None:
    found = typer.main.get_command(app).params
    assert "--traceback" in [option for one in found for option in one.opts]
