"""Plots of the report, as SVG text that stands inside the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

_INK = "#1f4e79"
_REFERENCE = "#b0413e"
_SIZE = (7.2, 3.2)
_ROW = 0.22
"""Height of a row of text, inches."""


def arms(entries: Sequence[Mapping[str, Any]]) -> str:
    """Test AUC of each arm with its interval; lines mark fair_base. Arms without an AUC are bare.

    Args:
        entries: The `arms` of report.json.
    """
    figure, axes = _canvas(max(_SIZE[1], _ROW * len(entries)))
    several = len({entry["backbone"] for entry in entries}) > 1
    names = [
        f"{entry['backbone']} {entry['arm']}" if several else entry["arm"] for entry in entries
    ]
    values, bounds = _intervals([(entry["auc"], entry["auc_ci"]) for entry in entries])
    rows = np.arange(len(names))[::-1]
    axes.errorbar(values, rows, xerr=bounds, fmt="o", color=_INK, capsize=4)
    for entry in entries:
        if entry["arm"] == "fair_base" and entry["auc"] is not None:
            axes.axvline(entry["auc"], color=_REFERENCE, linestyle="--", linewidth=1)
    axes.set_yticks(rows, names)
    axes.set_xlabel("test AUC")
    return _svg(figure)


def cluster_sizes(sizes: Mapping[str, Sequence[int]]) -> str:
    """Cluster sizes in falling order, one line a side.

    Args:
        sizes: Members of each cluster, by side.
    """
    figure, axes = _canvas()
    for (side, members), color in zip(sizes.items(), (_INK, _REFERENCE), strict=False):
        axes.step(
            np.arange(1, len(members) + 1),
            sorted(members, reverse=True),
            where="mid",
            label=f"{side}: {len(members)} clusters",
            color=color,
        )
    axes.set_xlabel("cluster, by size")
    axes.set_ylabel("members")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _svg(figure)


def latency(milliseconds: Sequence[float]) -> str:
    """Share of requests answered within a time; lines mark p50 and p99.

    Args:
        milliseconds: Latency of each measured request.
    """
    figure, axes = _canvas()
    times = np.sort(np.asarray(milliseconds))
    axes.step(times, np.arange(1, len(times) + 1) / len(times), where="post", color=_INK)
    for quantile in (50, 99):
        value = float(np.percentile(times, quantile))
        axes.axvline(value, color=_REFERENCE, linestyle="--", linewidth=1)
        axes.annotate(f" p{quantile} {value:.1f} ms", (value, 0.05), color=_REFERENCE)
    axes.set_xlabel("milliseconds a request")
    axes.set_ylabel("share answered")
    return _svg(figure)


def sweep(points: Sequence[tuple[str, Any]]) -> str:
    """Calls saved against similarity and, where there are arms, against their test AUC.

    Args:
        points: Name of each setting and its `sweep.Point`.
    """
    measured = [point for _, point in points if point.arms]
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] * (2 if measured else 1)), layout="constrained")
    panels = figure.subplots(2 if measured else 1, 1, sharex=True, squeeze=False)[:, 0]
    saved = [100 * point.calls_saved for _, point in points]
    for side, color in (("users", _INK), ("items", _REFERENCE)):
        similarity = [getattr(point, side).mean_similarity for _, point in points]
        panels[0].scatter(saved, similarity, color=color, label=side)
    for (name, point), x in zip(points, saved, strict=True):
        panels[0].annotate(f" {name}", (x, point.users.mean_similarity), fontsize=7)
    panels[0].set_ylabel("similarity to the centre")
    panels[0].legend(frameon=False)
    for arm in dict.fromkeys(entry["arm"] for point in measured for entry in point.arms):
        rows = [
            (100 * point.calls_saved, entry["auc"], entry["auc_ci"])
            for point in measured
            for entry in point.arms
            if entry["arm"] == arm
        ]
        values, errors = _intervals([figures for _, *figures in rows])
        panels[1].errorbar([x for x, *_ in rows], values, errors, fmt="o", capsize=4, label=arm)
    if measured:
        panels[1].set_ylabel("test AUC")
        panels[1].legend(frameon=False)
    panels[-1].set_xlabel("calls saved against individual extraction, %")
    for axes in panels:
        _open_frame(axes)
    return _svg(figure)


def _intervals(figures: Sequence[Sequence[Any]]) -> tuple[Floats, Floats]:
    """Values (N,) and how far their intervals reach below and above (2, N); NaN without."""
    values = np.array([np.nan if value is None else value for value, _ in figures])
    bounds = np.array([bounds or [np.nan, np.nan] for _, bounds in figures])
    return values, np.abs(bounds.T - values)


def _canvas(height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.subplots()
    _open_frame(axes)
    return figure, axes


def _open_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
