"""Rows of the report's tables, as texts; cells may have several lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reki_ray.core.formats import counted, duration, interval, number
from reki_ray.evaluation.comparison import BASELINE

Rows = dict[str, Any]
"""`headings` and `rows` of a table."""

Entry = Mapping[str, Any]
"""A part of report.json."""


def _rows(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Rows:
    return {"headings": list(headings), "rows": [list(row) for row in rows]}


def _names(arms: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells that name the arms, without the backbone if there is only one."""
    if len({arm["backbone"] for arm in arms}) < 2:
        return ["arm"], [[arm["arm"]] for arm in arms]
    return ["arm", "backbone"], [[arm["arm"], arm["backbone"]] for arm in arms]


def arm_rows(arms: Sequence[Entry]) -> Rows:
    """Test metrics of each arm."""
    headings, names = _names(arms)
    return _rows(
        [*headings, "seeds", "AUC", "against fair_base", "LogLoss", "GAUC"],
        (
            [
                *name,
                len(arm["seeds"]),
                interval(arm["auc"], arm["auc_ci"]),
                against_baseline(arm, arm),
                interval(arm["logloss"], None),
                interval(arm["gauc"], None),
            ]
            for name, arm in zip(names, arms, strict=True)
        ),
    )


def slice_rows(arms: Sequence[Entry]) -> Rows:
    """AUC of each arm on each slice, and below it the difference from fair_base."""
    headings, names = _names(arms)
    by_slice = arms[0]["slices"] if arms else {}
    return _rows(
        [
            *headings,
            *(
                f"{name.replace('_', ' ')}\n{counted(part['samples'], 'sample')}"
                for name, part in by_slice.items()
            ),
        ],
        (
            [
                *name,
                *(
                    f"{interval(part['auc'], None)}\n{_stacked(against_baseline(arm, part))}"
                    for part in map(arm["slices"].__getitem__, by_slice)
                ),
            ]
            for name, arm in zip(names, arms, strict=True)
        ),
    )


def calibration_rows(arms: Sequence[Entry]) -> Rows:
    """Calibration error and ratio of each arm."""
    headings, names = _names(arms)
    return _rows(
        [*headings, "ECE", "ratio"],
        (
            [*name, *(interval(arm["calibration"][key], None) for key in ("error", "ratio"))]
            for name, arm in zip(names, arms, strict=True)
            if "calibration" in arm
        ),
    )


def reranking_rows(rows: Sequence[Entry] | None) -> list[Rows]:
    """A table of the headline figures with intervals, and one of all cutoffs."""
    if not rows:
        return []
    cutoffs = [
        (f"{metric.upper()}@{k}", metric, k) for metric in ("ndcg", "map") for k in rows[0][metric]
    ]
    headline, at_cutoffs = [], []
    for row in rows:
        name = ", ".join(filter(None, (row["reranker"], row["arm"])))
        figures = [
            interval(row["ndcg"]["7"], row["ndcg_7_ci"]),
            against_baseline(row, row, "delta_ndcg_7"),
            interval(row["delta_initial_ndcg_7"], row["delta_initial_ci"], signed=True),
            interval(row["map"]["7"], row["map_7_ci"]),
            against_baseline(row, row, "delta_map_7", "delta_map_7_ci"),
        ]
        headline.append([name, *map(_stacked, figures)])
        values = (row[metric].get(k) for _, metric, k in cutoffs)
        at_cutoffs.append([name, *(interval(value, None) for value in values)])
    against = "against fair_base"
    headings = ["NDCG@7", against, "against the initial order", "MAP@7", against]
    return [
        _rows(["reranker, arm", *headings], headline),
        _rows(["reranker, arm", *(heading for heading, *_ in cutoffs)], at_cutoffs),
    ]


def stage_rows(stages: Sequence[Entry]) -> Rows:
    """Time and rows of each stage."""
    return _rows(
        ["stage", "time", "rows in", "rows out", "dead", "last run"],
        (
            [
                stage["name"],
                duration(stage["seconds"]),
                *(number(stage[key]) for key in ("rows_in", "rows_out", "dead")),
                "unchanged" if stage["skipped"] else "done",
            ]
            for stage in stages
        ),
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
