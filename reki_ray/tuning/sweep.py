"""`reki sweep`: how much the result depends on the settings of clustering.

Every point is a run of its own in `<workspace>/sweep/<changes>/`; all share the caches of answers
and vectors, so that a prompt which several points share is sent once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from reki_ray.config import RekiConfig, describe_problems
from reki_ray.config.files import parse_yaml
from reki_ray.config.keys import leaves, nearest
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.evaluation.comparison import METRICS
from reki_ray.schema import SIDES
from reki_ray.stages import pipeline

UNTIL: Final = ("cluster", "evaluate")
RESULT: Final = "sweep/sweep.json"
PLOT: Final = "sweep/sweep.svg"


class SideFigures(BaseModel):
    """Clusters of one side.

    Attributes:
        clusters: Number of clusters, each one call of the LLM.
        calls_saved: Share of the calls of individual extraction that clustering saves.
        mean_similarity: Mean cosine between ids and their centres.
    """

    ids: int
    clusters: int
    calls_saved: float
    mean_similarity: float
    smallest: int
    median: float
    largest: int


class Point(BaseModel):
    """One combination of settings and its results.

    Attributes:
        changes: Key of the configuration to its value.
        arms: Entries as in report.json; empty if only clustering ran.
    """

    changes: dict[str, Any]
    workspace: str
    users: SideFigures
    items: SideFigures
    arms: list[dict[str, Any]] = []

    @property
    def calls_saved(self) -> float:
        """Share of the calls of individual extraction that clustering of both sides saves."""
        ids = self.users.ids + self.items.ids
        return 1 - (self.users.clusters + self.items.clusters) / ids


def sweep(config: RekiConfig, vary: Sequence[str], until: str, reporter: Reporter) -> list[Point]:
    """Run every combination of values, and write a summary and a plot.

    Args:
        vary: Settings as `cluster.users.min_cluster_size=4,8,16`.
        until: `cluster` for clusters only; `evaluate` also extracts, trains and evaluates.

    Raises:
        ConfigError: A setting is unknown or has an invalid value, or `until` is another stage.
        RekiError: A run failed; the next sweep skips finished ones.
    """
    if until not in UNTIL:
        raise ConfigError(
            f"a sweep ends at {' or '.join(UNTIL)}, not at {until!r}",
            where="--until",
            todo=f"Give --until {UNTIL[0]} or --until {UNTIL[1]}.",
        )
    points = []
    runs = list(variants(config, vary))  # validates all before the first run
    Workspace(config.root).stages()  # report a broken workspace before the first run
    for number, (changes, changed) in enumerate(runs, start=1):
        reporter.say(f"sweep: {number} of {len(runs)}: {point_name(changes)}")
        workspace = Workspace(changed.root)
        Workspace(config.root).link_caches(workspace)
        stages = pipeline.select(until=until)
        pipeline.run_stages(changed, stages, Reporter(workspace, quiet=True))
        points.append(_point(changes, workspace, until))
    reporter.say(f"sweep: plot {_keep(config, points)}")
    return points


def variants(
    config: RekiConfig, vary: Sequence[str]
) -> Iterator[tuple[dict[str, Any], RekiConfig]]:
    """Yield every combination of values, as changes and the changed configuration.

    Raises:
        ConfigError: A setting is unknown or has an invalid value.
    """
    keys, values = [], []
    for setting in vary:
        key, equals, given = setting.partition("=")
        if not equals or not given:
            raise ConfigError(
                f"{setting!r} names no values",
                where="--vary",
                todo="Write it as cluster.users.min_cluster_size=4,8,16.",
            )
        keys.append(key.strip())
        try:
            values.append([parse_yaml(value) for value in given.split(",")])
        except yaml.YAMLError as error:
            raise ConfigError(
                f"the values of {setting!r} are not YAML: {error}",
                where="--vary",
                todo="Separate plain values by commas, as 4,8,16.",
            ) from error
    for combination in itertools.product(*values):
        changes = dict(zip(keys, combination, strict=True))
        yield changes, _changed(config, changes)


def _changed(config: RekiConfig, changes: dict[str, Any]) -> RekiConfig:
    tree = config.model_dump()  # with secrets, which JSON omits
    for key, value in changes.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.get(section, {}) if isinstance(inner, dict) else {}
        if not isinstance(inner, dict) or name not in inner:
            raise ConfigError(
                f"there is no setting {key!r}; the nearest is {nearest(key, leaves(RekiConfig))!r}",
                where="--vary",
                todo="docs/reference/config.md lists all settings.",
            )
        inner[name] = value
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", "_".join(f"{k}={v}" for k, v in changes.items()))
    tree["workspace"] = f"{config.root}/sweep/{slug or 'as-is'}"
    try:
        return RekiConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            describe_problems(error, RekiConfig),
            where=f"--vary {point_name(changes)}",
            todo="Correct the value.",
        ) from error


def _point(changes: dict[str, Any], workspace: Workspace, until: str) -> Point:
    details = workspace.stages()["cluster"].details
    arms = workspace.read_json(METRICS)["arms"] if until == "evaluate" else []
    sides = {side: _side(details[side]) for side in SIDES}
    return Point(changes=changes, workspace=workspace.root, arms=arms, **sides)


def _side(details: dict[str, Any]) -> SideFigures:
    sizes = details["sizes"]
    ids = sum(details["size_list"])
    return SideFigures(
        ids=ids,
        clusters=details["clusters"],
        calls_saved=1 - details["clusters"] / ids,
        mean_similarity=details["mean_similarity"],
        smallest=sizes["min"],
        median=sizes["median"],
        largest=sizes["max"],
    )


def _keep(config: RekiConfig, points: Sequence[Point]) -> str:
    """Write the points and their plot, and return the plot's path."""
    from reki_ray.evaluation import plots  # imports matplotlib

    workspace = Workspace(config.root)
    workspace.write_json(RESULT, {"points": [point.model_dump(mode="json") for point in points]})
    workspace.write_text(PLOT, plots.sweep([(point_name(p.changes), p) for p in points]))
    return f"{workspace.location}/{PLOT}"


def point_name(changes: dict[str, Any]) -> str:
    """Changed settings as `cluster.method=kmeans`, for people."""
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "as configured"
