"""Plots of the report, as SVG text for inlining in the page.

Text stays text, and colours are those of the page's style, so that the plots follow its light and
dark scheme. A plot without data is an empty text.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reki_ray.core.formats import counted, interval
from reki_ray.evaluation.comparison import BASELINE
from reki_ray.metrics.bootstrap import is_apart

_TEXT, _INK, _REFERENCE = "#1c1c1d", "#1f4e79", "#b0413e"
_STYLED: Final = {_TEXT: "currentColor", _INK: "var(--ink)", _REFERENCE: "var(--mark)"}
"""Colours of the page's style, by colours drawn."""

_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "reki",  # the same plot is the same text
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT
    ),
}
_SIZE = (4.8, 2.5)
_ROW = 0.42
"""Height of a row of two lines of text, inches."""
_PANELS = 3
"""Panels beside each other."""


def differences(
    arms: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Paired differences of AUC with intervals, for `arms` and `controls` of report.json."""
    compared = [
        *((entry, BASELINE) for entry in arms if entry["arm"] != BASELINE),
        *((entry, entry["control"]) for entry in controls),
    ]
    rows = [(entry, other) for entry, other in compared if entry["delta_auc"] is not None]
    if not rows:
        return ""
    several = len({entry["backbone"] for entry, _ in rows}) > 1
    labels = []
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(max(_SIZE[1], _ROW * len(rows) + 0.8))
        axes.axvline(0.0, color=_REFERENCE, linewidth=1)
        for place, (entry, other) in enumerate(rows):
            low, high = entry["delta_ci"] or [entry["delta_auc"]] * 2
            apart = is_apart(entry["delta_ci"], entry["ci_over"])
            axes.plot([low, high], [place, place], color=_INK, linewidth=1.5, solid_capstyle="butt")
            axes.plot(
                entry["delta_auc"],
                place,
                marker="o",
                color=_INK,
                fillstyle="full" if apart else "none",
            )
            arm = f"{entry['backbone']} {entry['arm']}" if several else entry["arm"]
            difference = interval(entry["delta_auc"], entry["delta_ci"], signed=True)
            labels.append(f"{arm} \N{MINUS SIGN} {other}\n{difference}")
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first one at the top
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("difference in test AUC")
        return _inline(figure)


def calibration(arms: Sequence[Mapping[str, Any]], shown: str | None) -> str:
    """Predicted against observed click rate of fair_base and the arm `shown`, per backbone."""
    by_model = {
        (entry["backbone"], entry["arm"]): entry["calibration"]["bins"]
        for entry in arms
        if entry["arm"] in (shown, BASELINE) and entry.get("calibration", {}).get("bins")
    }
    backbones = list(dict.fromkeys(backbone for backbone, _ in by_model))
    if not backbones:
        return ""
    columns = min(len(backbones), _PANELS)
    lines = -(-len(backbones) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(
            figsize=(_SIZE[0], _SIZE[0] / max(columns, 2) * lines), layout="constrained"
        )
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel in panels[len(backbones) :]:
            panel.set_visible(False)
        for backbone, panel in zip(backbones, panels, strict=False):
            _open_frame(panel)
            for arm, color, marker in ((BASELINE, _REFERENCE, "s"), (shown, _INK, "o")):
                bins = by_model.get((backbone, arm or ""))
                if bins and (arm != BASELINE or color == _REFERENCE):
                    points = [[bin_["predicted"], bin_["observed"]] for bin_ in bins]
                    panel.plot(
                        *zip(*points, strict=True),
                        color=color,
                        marker=marker,
                        markersize=3,
                        label=arm,
                    )
            panel.axline((0, 0), slope=1, color=_TEXT, linestyle=":", linewidth=1)
            panel.set_title(backbone, fontsize=9)
        panels[0].legend(frameon=False)
        panels[0].set_xlabel("predicted")
        panels[0].set_ylabel("observed")
        return _inline(figure)


def cluster_sizes(sizes: Mapping[str, Sequence[int]]) -> str:
    """Sorted cluster sizes, one line per side."""
    if not any(len(members) for members in sizes.values()):
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas()
        for (side, members), color in zip(sizes.items(), (_INK, _REFERENCE), strict=False):
            axes.stairs(
                sorted(members, reverse=True),
                np.arange(len(members) + 1) + 0.5,
                label=f"{side}: {counted(len(members), 'cluster')}",
                baseline=None,
                color=color,
                linewidth=1.5,
            )
        axes.set_xlabel("cluster, by size")
        axes.set_ylabel("members")
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(frameon=False)
        return _inline(figure)


def latency(milliseconds: Sequence[float]) -> str:
    """Share of requests answered within a time; lines mark p50 and p99."""
    if not len(milliseconds):
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas()
        times = np.sort(np.asarray(milliseconds))
        axes.step(times, np.arange(1, len(times) + 1) / len(times), where="post", color=_INK)
        axes.set_ylim(0, 1.02)
        middle = float(times[0] + times[-1]) / 2
        for quantile, height in ((50, 0.05), (99, 0.15)):
            value = float(np.percentile(times, quantile))
            axes.axvline(value, color=_REFERENCE, linestyle="--", linewidth=1)
            axes.annotate(
                f" p{quantile} {value:.1f} ms ",
                (value, height),
                color=_REFERENCE,
                ha="right" if value > middle else "left",
            )
        axes.set_xlabel("milliseconds per request")
        axes.set_ylabel("share answered")
        return _inline(figure)


def sweep(points: Sequence[tuple[str, Any]]) -> str:
    """Calls saved against similarity and test AUC, for the name and `sweep.Point` of settings."""
    measured = [point for _, point in points if any(e["auc"] is not None for e in point.arms)]
    with mpl.rc_context(_STYLE):
        count = 2 if measured else 1
        figure = Figure(figsize=(1.5 * _SIZE[0], 1.3 * _SIZE[1] * count), layout="constrained")
        panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
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
                (100 * point.calls_saved, entry["auc"], entry["auc_ci"] or [entry["auc"]] * 2)
                for point in measured
                for entry in point.arms
                if entry["arm"] == arm and entry["auc"] is not None
            ]
            values = np.array([auc for _, auc, _ in rows])
            errors = np.abs(np.array([bounds for *_, bounds in rows]).T - values)
            panels[1].errorbar([x for x, *_ in rows], values, errors, fmt="o", capsize=4, label=arm)
        if measured:
            panels[1].set_ylabel("test AUC")
            panels[1].legend(frameon=False)
        panels[-1].set_xlabel("calls saved against individual extraction, %")
        for axes in panels:
            _open_frame(axes)
        return _svg(figure)


def _canvas(height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.subplots()
    _open_frame(axes)
    return figure, axes


def _open_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _inline(figure: Figure) -> str:
    """The plot in the colours of its page."""
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    text = _svg(figure)
    for drawn, styled in _STYLED.items():
        text = text.replace(drawn, styled)
    return text


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
