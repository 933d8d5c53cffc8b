"""Trials of a search, and its best settings as a file for `train.tuned`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from reki_ray.config import Arm, Backbone, Domain, TrainConfig
from reki_ray.config.keys import nested
from reki_ray.core import atomic
from reki_ray.core.formats import interval
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.training.runs import slug
from reki_ray.tuning.space import complete

FOLDER = "tune"
_SUFFIXES = (".yaml", ".yml")


class Trial(BaseModel):
    """One setting and its result on the validation samples.

    Attributes:
        settings: Dotted key of `train` to its value.
        configured: Whether these are the settings of the configuration.
        status: done: trained to the end; stopped: ended early; diverged: counts as tried; failed:
            does not count as tried.
        quality: Maximised: AUC, or minus the log-loss if there is a single label.
        valid_logloss: Log-loss of its best epoch, nats per sample.
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

    @property
    def score(self) -> str:
        """The AUC, or the log-loss if the AUC is not defined."""
        if self.valid_auc is not None:
            return f"AUC {self.valid_auc:.4f}"
        return f"log-loss {interval(self.valid_logloss, None)}"


class Search(BaseModel):
    """All trials of one backbone, arm, seed, space and data set.

    Attributes:
        fingerprint: Equal if the same trial would give the same result.
    """

    fingerprint: str
    backbone: Backbone
    arm: Arm
    seed: int
    space: dict[str, Domain]
    trials: list[Trial] = []

    @property
    def name(self) -> str:
        """Its file in the folder `tune`, without the suffix."""
        return f"{slug(self.backbone)}-{self.arm}-{self.fingerprint[:12]}"

    @property
    def finished(self) -> list[Trial]:
        """Trials with a result."""
        return [trial for trial in self.trials if trial.quality is not None]

    @property
    def tried(self) -> list[Trial]:
        """Trials that are not repeated: those with a result, and diverged ones."""
        return [t for t in self.trials if t.quality is not None or t.status == "diverged"]

    @property
    def ranked(self) -> list[Trial]:
        """Finished trials, best first; the earlier of equals."""
        return sorted(self.finished, key=lambda trial: -(trial.quality or 0.0))

    @property
    def best(self) -> Trial:
        """Trial of the highest quality; the first of equals."""
        return self.ranked[0]

    @property
    def configured(self) -> Trial | None:
        """Finished trial of the configuration's own settings, if there is one."""
        return next((trial for trial in self.finished if trial.configured), None)

    @property
    def size(self) -> float:
        """Number of points of the space; infinite if a domain is continuous."""
        return math.prod(domain.size or math.inf for domain in self.space.values())


def check_target(out: Path | None, backbones: Sequence[Backbone]) -> None:
    """Refuse, before any trial, to write the settings of several backbones to one file.

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
    """Write the best settings of a backbone, for `train.tuned`, and return the file's path.

    Args:
        search: With at least one finished trial.
        out: A YAML file, or a folder that gets one file per backbone.
    """
    best, configured = search.best, search.configured
    before = f"; as configured before {configured.score}" if configured else ""
    settings = complete(train, search.backbone, best.settings)
    text = (
        f"# reki tune: {search.backbone}, arm {search.arm}, seed {search.seed}, best of "
        f"{len(search.finished)} trials.\n"
        f"# Validation {best.score} after epoch {best.best_epoch}{before}.\n"
    ) + yaml.safe_dump({search.backbone: nested(settings)})
    name = f"{slug(search.backbone)}.yaml"
    if out is None:
        relative = f"{FOLDER}/tuned/{name}"
        workspace.write_text(relative, text)
        return workspace.path(relative)
    target = out if out.suffix in _SUFFIXES else out / name
    atomic.replace_file(target, text.encode())
    return str(target)
