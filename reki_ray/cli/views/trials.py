"""Trials of `reki tune` and points of `reki sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from reki_ray.core.formats import interval
from reki_ray.evaluation.comparison import BASELINE
from reki_ray.schema import SIDES
from reki_ray.tuning.sweep import point_name

if TYPE_CHECKING:  # imports torch
    from reki_ray.tuning.results import Search
    from reki_ray.tuning.sweep import Point

_SHOWN_TRIALS = 5


def search_tables(searches: Sequence[Search]) -> Group:
    """Show the best trials of each backbone, and that of the configured settings."""
    return Group(*[_search_table(search) for search in searches])


def _search_table(search: Search) -> Table:
    table = Table(
        *("trial", "AUC", "LogLoss", "epoch", "samples/s", "settings"),
        title=f"{search.backbone}, arm {search.arm}: {len(search.finished)} trials, "
        "validation split",
        title_justify="left",
    )
    shown = search.ranked[:_SHOWN_TRIALS]
    if search.configured is not None and search.configured not in shown:
        shown.append(search.configured)
    for trial in shown:
        settings = ", ".join(f"{key} {_value(value)}" for key, value in trial.settings.items())
        table.add_row(
            f"{trial.number}{' (as configured)' if trial.configured else ''}",
            interval(trial.valid_auc, None),
            interval(trial.valid_logloss, None),
            f"{trial.best_epoch} of {trial.epochs}",
            f"{trial.samples_per_second:,.0f}",
            settings,
        )
    return table


def sweep_table(points: Sequence[Point]) -> Table:
    """Show the clusters, and the arms if trained, of each point of a sweep."""
    table = Table(title="sweep", title_justify="left")
    table.add_column("setting", overflow="fold")
    for heading in ("calls saved", "side", "clusters", "similarity", "smallest / median / largest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        sides = [getattr(point, side) for side in SIDES]
        arms = [_arm(entry) for entry in point.arms]
        table.add_row(
            Text("\n".join([point_name(point.changes), *arms])),
            f"{point.calls_saved:.1%}",
            "\n".join(SIDES),
            "\n".join(f"{side.clusters:,}" for side in sides),
            "\n".join(f"{side.mean_similarity:.3f}" for side in sides),
            "\n".join(f"{side.smallest} / {side.median:g} / {side.largest}" for side in sides),
        )
    return table


def _arm(entry: dict[str, Any]) -> str:
    against = ""
    if entry["arm"] != BASELINE and entry["delta_auc"] is not None:
        difference = interval(entry["delta_auc"], entry["delta_ci"], signed=True)
        against = f", against {BASELINE} {difference}"
    return f"  {entry['arm']}: AUC {interval(entry['auc'], None)}{against}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")
