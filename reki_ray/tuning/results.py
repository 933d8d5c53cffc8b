"""What a search found: one record a trial, and the best settings as a file for `train.tuned`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Group
from rich.table import Table

from reki_ray.config import Arm, Backbone, Domain, TrainConfig
from reki_ray.config.keys import nested
from reki_ray.core import atomic
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.training.runs import slug
from reki_ray.tuning.space import Settings, complete

FOLDER = "tune"
_SHOWN = 5
_SUFFIXES = (".yaml", ".yml")


class Trial(BaseModel):
    """One setting and what it gave on the validation samples.

    Attributes:
        number: From 0.
        settings: Dotted key of `train` to its value.
        configured: Whether these are the settings of the configuration.
        status: done, trained to its end; stopped, ended early as one of the worse; diverged, which
            it would again; failed, which it might not again.
        quality: What is maximised: AUC, or minus the log-loss where there is a single label.
        valid_auc: AUC of its best epoch.
        valid_logloss: Log-loss of its best epoch, nats a sample.
        best_epoch: Number of its best epoch, from 1.
        epochs: Epochs trained.
        seconds: Time of its training steps.
        samples_per_second: Of its median epoch.
        error: Why it has no result.
    """

    number: int
    settings: dict[str, Any]
    configured: bool = False
    status: Literal["done", "stopped", "diverged", "failed"] = "done"
    quality: float | None = None
    valid_auc: float | None = None
    valid_logloss: float | None = None
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    samples_per_second: float = 0.0
    error: str = ""


class Search(BaseModel):
    """All trials of one backbone, arm, seed, space and data set.

    Attributes:
        fingerprint: Equal where the same trial would give the same result.
        backbone: Whose settings are searched.
        arm: What the model sees.
        seed: Of the search and of every trial.
        space: What is searched.
        trials: Trials, in the order in which they ended.
    """

    fingerprint: str
    backbone: Backbone
    arm: Arm
    seed: int
    space: dict[str, Domain]
    trials: list[Trial] = []

    @property
    def path(self) -> str:
        """Its file below the workspace."""
        return f"{FOLDER}/{slug(self.backbone)}-{self.arm}-{self.fingerprint[:12]}.json"

    @property
    def finished(self) -> list[Trial]:
        """Trials that gave a result."""
        return [trial for trial in self.trials if trial.quality is not None]

    @property
    def settled(self) -> list[Trial]:
        """Trials that need not be made again: those with a result, and diverged ones."""
        return [one for one in self.trials if one.quality is not None or one.status == "diverged"]

    @property
    def best(self) -> Trial:
        """Trial of the highest quality; the first of equals."""
        return max(self.finished, key=_quality)

    @property
    def configured(self) -> Trial | None:
        """Trial of the configuration's own settings, if it gave a result."""
        return next((trial for trial in self.finished if trial.configured), None)

    def resume(self, workspace: Workspace) -> None:
        """Take over the trials that an earlier call of this search left."""
        if not workspace.exists(self.path):
            return
        try:
            self.trials = Search.model_validate(workspace.read_json(self.path)).trials
        except ValidationError as error:
            raise ConfigError(
                f"the file of finished trials is of no use: {error.errors()[0]['msg']}",
                where=workspace.path(self.path),
                todo="Delete it; its trials are then made anew.",
            ) from error

    def keep(self, workspace: Workspace) -> None:
        """Write all trials so far."""
        workspace.write_json(self.path, self.model_dump(mode="json"))


def measured(trial: Trial) -> str:
    """What selection goes by, in words: the AUC, or the log-loss where it is not defined."""
    if trial.valid_auc is not None:
        return f"AUC {trial.valid_auc:.4f}"
    return f"log-loss {_figure(trial.valid_logloss)}"


def check_target(out: Path | None, backbones: Sequence[Backbone]) -> None:
    """Refuse a target that cannot hold the settings of all backbones, before any trial.

    Raises:
        ConfigError: It is one file for several backbones.
    """
    if out is not None and out.suffix in _SUFFIXES and len(backbones) > 1:
        raise ConfigError(
            f"one file cannot hold the settings of {len(backbones)} backbones",
            where=f"--out {out}",
            todo="Name a folder: each backbone gets a file there.",
        )


def write_tuned(search: Search, train: TrainConfig, workspace: Workspace, out: Path | None) -> str:
    """Write the best settings of a backbone, for `train.tuned`.

    Args:
        search: With at least one finished trial.
        train: Configuration that the trials changed.
        workspace: Gets the file where `out` is None.
        out: A YAML file, or a folder that gets one a backbone.

    Returns:
        Path of the file.
    """
    name = f"{slug(search.backbone)}.yaml"
    text = _tuned(search, complete(train, search.backbone, search.best.settings))
    if out is None:
        relative = f"{FOLDER}/tuned/{name}"
        workspace.write_text(relative, text)
        return workspace.path(relative)
    target = out if out.suffix in _SUFFIXES else out / name
    atomic.replace_file(target, text.encode())
    return str(target)


def render(searches: Sequence[Search]) -> Group:
    """The best trials of each backbone, and its first, for the terminal."""
    return Group(*[_table(search) for search in searches])


def _tuned(search: Search, settings: Settings) -> str:
    best, first = search.best, search.configured
    before = f"; as configured before {measured(first)}" if first else ""
    header = (
        f"# reki tune: {search.backbone}, arm {search.arm}, seed {search.seed}, best of "
        f"{len(search.finished)} trials.\n"
        f"# Validation {measured(best)} after epoch {best.best_epoch}{before}.\n"
    )
    return header + yaml.safe_dump({search.backbone: nested(settings)})


def _table(search: Search) -> Table:
    table = Table(
        title=f"{search.backbone}, arm {search.arm}: {len(search.finished)} trials, "
        "validation split",
        title_justify="left",
    )
    for heading in ("trial", "AUC", "LogLoss", "epoch", "samples/s", "settings"):
        table.add_column(heading)
    ranked = sorted(search.finished, key=_quality, reverse=True)
    shown = ranked[:_SHOWN]
    if search.configured is not None and search.configured not in shown:
        shown.append(search.configured)
    for trial in shown:
        settings = ", ".join(f"{key} {_value(value)}" for key, value in trial.settings.items())
        table.add_row(
            f"{trial.number}{' (as configured)' if trial.configured else ''}",
            _figure(trial.valid_auc),
            _figure(trial.valid_logloss),
            f"{trial.best_epoch} of {trial.epochs}",
            f"{trial.samples_per_second:,.0f}",
            settings,
        )
    return table


def _quality(trial: Trial) -> float:
    assert trial.quality is not None  # finished
    return trial.quality


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")
