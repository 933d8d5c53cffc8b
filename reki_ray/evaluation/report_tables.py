"""Rows of the report's tables, as texts; cells may have several lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from reki_ray.core.formats import counted, duration, interval, number
from reki_ray.evaluation.comparison import BASELINE

Rows = dict[str, Any]
"""`headings` and `rows` of a table."""

Entry = Mapping[str, Any]
"""A part of report.json."""


Column = tuple[str, Callable[[Entry], Any]]
"""A heading, and what its cell shows of an entry."""


def _table(entries: Sequence[Entry], columns: Sequence[Column]) -> Rows:
    return {
        "headings": [heading for heading, _ in columns],
        "rows": [[cell(entry) for _, cell in columns] for entry in entries],
    }


def _names(arms: Sequence[Entry]) -> list[Column]:
    """Columns that name the arms, without the backbone if there is only one."""
    keys = ("arm", "backbone") if len({arm["backbone"] for arm in arms}) > 1 else ("arm",)
    return [(key, itemgetter(key)) for key in keys]


def arm_rows(arms: Sequence[Entry]) -> Rows:
    """Test metrics of each arm."""
    return _table(
        arms,
        [
            *_names(arms),
            ("seeds", lambda arm: len(arm["seeds"])),
            ("AUC", lambda arm: interval(arm["auc"], arm["auc_ci"])),
            ("against fair_base", lambda arm: against_baseline(arm, arm)),
            ("LogLoss", lambda arm: interval(arm["logloss"], None)),
            ("GAUC", lambda arm: interval(arm["gauc"], None)),
        ],
    )


def slice_rows(arms: Sequence[Entry]) -> Rows:
    """AUC of each arm on each slice, and below it the difference from fair_base."""

    def column(name: str, samples: int) -> Column:
        def cell(arm: Entry) -> str:
            part = arm["slices"][name]
            return f"{interval(part['auc'], None)}\n{_stacked(against_baseline(arm, part))}"

        return f"{name.replace('_', ' ')}\n{counted(samples, 'sample')}", cell

    by_slice = arms[0]["slices"] if arms else {}
    slices = [column(name, part["samples"]) for name, part in by_slice.items()]
    return _table(arms, [*_names(arms), *slices])


def calibration_rows(arms: Sequence[Entry]) -> Rows:
    """Calibration error and ratio of each arm."""
    return _table(
        [arm for arm in arms if "calibration" in arm],
        [
            *_names(arms),
            ("ECE", lambda arm: interval(arm["calibration"]["error"], None)),
            ("ratio", lambda arm: interval(arm["calibration"]["ratio"], None)),
        ],
    )


def reranking_rows(rows: Sequence[Entry] | None) -> list[Rows]:
    """A table of the headline figures with intervals, and one of all cutoffs."""
    if not rows:
        return []

    def at_cutoff(metric: str, k: str) -> Column:
        return f"{metric.upper()}@{k}", lambda row: interval(row[metric].get(k), None)

    against = "against fair_base"
    figures: list[Column] = [
        ("NDCG@7", lambda row: interval(row["ndcg"]["7"], row["ndcg_7_ci"])),
        (against, lambda row: against_baseline(row, row, "delta_ndcg_7")),
        (
            "against the initial order",
            lambda row: interval(row["delta_initial_ndcg_7"], row["delta_initial_ci"], signed=True),
        ),
        ("MAP@7", lambda row: interval(row["map"]["7"], row["map_7_ci"])),
        (against, lambda row: against_baseline(row, row, "delta_map_7", "delta_map_7_ci")),
    ]
    name: Column = (
        "reranker, arm",
        lambda row: ", ".join(filter(None, (row["reranker"], row["arm"]))),
    )
    cutoffs = [at_cutoff(metric, k) for metric in ("ndcg", "map") for k in rows[0][metric]]
    headline = _table(rows, [name, *figures])
    headline["rows"] = [[row[0], *map(_stacked, row[1:])] for row in headline["rows"]]
    return [headline, _table(rows, [name, *cutoffs])]


def stage_rows(stages: Sequence[Entry]) -> Rows:
    """Time and rows of each stage."""
    return _table(
        stages,
        [
            ("stage", itemgetter("name")),
            ("time", lambda stage: duration(stage["seconds"])),
            ("rows in", lambda stage: number(stage["rows_in"])),
            ("rows out", lambda stage: number(stage["rows_out"])),
            ("dead", lambda stage: number(stage["dead"])),
            ("last run", lambda stage: "unchanged" if stage["skipped"] else "done"),
        ],
    )


def against_baseline(
    entry: Entry, part: Entry, delta: str = "delta_auc", bounds: str = "delta_ci"
) -> str:
    """Difference from fair_base; the baseline itself has none."""
    if entry["arm"] == BASELINE:
        return "-"
    return interval(part[delta], part[bounds], signed=True)


def _stacked(figure: str) -> str:
    """A figure with its interval below it."""
    return figure.replace(" [", "\n[")
