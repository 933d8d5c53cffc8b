"""An estimate as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from reki_ray.extraction.estimating.estimate import Estimate
from reki_ray.extraction.estimating.figures import KindEstimate, ModeEstimate
from reki_ray.extraction.estimating.tokens import Interval

_SHORT = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
_BYTES = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_HOURS_A_YEAR, _HOURS_A_DAY = 8766.0, 24.0


def render(estimate: Estimate) -> Group:
    """Both modes side by side, the prompts of each kind, and what is assumed."""
    assumptions = "\n".join(f"- {sentence}" for sentence in estimate.assumptions)
    return Group(
        _modes(estimate), _kinds(estimate), Text(f"Measured on samples. Assumed:\n{assumptions}")
    )


def summary(estimate: Estimate) -> list[str]:
    """One line a mode."""
    return [", ".join(_parts(mode, estimate)) for mode in estimate.modes]


def _parts(mode: ModeEstimate, estimate: Estimate) -> Iterator[str]:
    yield (
        f"{_name(mode, estimate)}: {mode.prompts:,} prompts for {mode.subjects:,} subjects, "
        f"{_short(mode.prompt_tokens.mean)} prompt and {_short(mode.generated_tokens.mean)} "
        "generated tokens"
    )
    if mode.gpu_hours.mean:
        yield f"{_short(mode.gpu_hours.mean)} GPU hours"
    if mode.cost.mean:
        yield f"{_short(mode.cost.mean)} {estimate.currency}"
    yield _bytes(mode.storage.total)
    if estimate.speed_source == "configured":
        yield "time not measured yet (`reki plan` measures it)"
    else:
        yield f"{_time(mode.wall_hours.mean)} with {_engines(estimate)}"


def _engines(estimate: Estimate) -> str:
    return "1 engine" if estimate.engines == 1 else f"{estimate.engines:,} engines"


def _name(mode: ModeEstimate, estimate: Estimate) -> str:
    return f"{mode.mode}{' (configured)' if mode.mode == estimate.configured else ''}"


def _modes(estimate: Estimate) -> Table:
    engines = _engines(estimate)
    table = Table(
        title=Text(f"plan of {estimate.name}: {estimate.model}, {engines}"), title_justify="left"
    )
    table.add_column("")
    for mode in estimate.modes:
        table.add_column(_name(mode, estimate), justify="right")

    def row(name: str, cell: Callable[[ModeEstimate], str], *, last: bool = False) -> None:
        table.add_row(name, *(cell(mode) for mode in estimate.modes), end_section=last)

    row("subjects", lambda mode: _count(mode.subjects))
    row("prompts without duplicates", lambda mode: _count(mode.prompts))
    row("prompt tokens", lambda mode: _range(mode.prompt_tokens, _short))
    row("of these cached", lambda mode: _share(mode.cached_tokens, mode.prompt_tokens.mean))
    row("generated tokens", lambda mode: _range(mode.generated_tokens, _short), last=True)
    row("engine hours", lambda mode: _range(mode.engine_hours, _short))
    row("GPU hours", lambda mode: _range(mode.gpu_hours, _short))
    row(f"money, {estimate.currency}", lambda mode: _range(mode.cost, _short))
    row(f"wall time, {engines}", lambda mode: _range(mode.wall_hours, _time), last=True)
    row("storage", lambda mode: _bytes(mode.storage.total))
    row("  rendered prompts", lambda mode: _bytes(mode.storage.plan))
    row("  ledger", lambda mode: _bytes(mode.storage.ledger))
    row("  knowledge", lambda mode: _bytes(mode.storage.knowledge))
    row("  representations", lambda mode: _bytes(mode.storage.representations))
    row("  published vectors", lambda mode: _bytes(mode.storage.published))
    return table


def _kinds(estimate: Estimate) -> Table:
    table = Table(title="prompts by kind", title_justify="left")
    table.add_column("kind")
    for heading in (
        "subjects",
        "duplicates",
        "sampled",
        "tokens a prompt",
        "cached",
        "tokens an answer",
    ):
        table.add_column(heading, justify="right")
    for kind in (kind for mode in estimate.modes for kind in mode.kinds):
        table.add_row(kind.kind, *_kind_cells(kind))
    return table


def _kind_cells(kind: KindEstimate) -> list[str]:
    return [
        _count(kind.subjects),
        f"{kind.duplicate_share:.1%}",
        f"{kind.sampled:,}",
        _range(kind.prompt_tokens, lambda value: f"{value:,.0f}"),
        f"{kind.cached_tokens:,}",
        _range(kind.generated_tokens, lambda value: f"{value:,.0f}"),
    ]


def _range(interval: Interval, shown: Callable[[float], str]) -> str:
    mean, low, high = (shown(value) for value in (interval.mean, interval.low, interval.high))
    return mean if low == mean == high else f"{mean} [{low}..{high}]"


def _count(number: int) -> str:
    return f"{number:,}"


def _share(part: float, whole: float) -> str:
    return f"{_short(part)} ({part / whole:.0%})" if whole else "0"


def _short(value: float) -> str:
    for size, unit in _SHORT:
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"


def _bytes(value: int) -> str:
    for size, unit in _BYTES:
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value} B"


def _time(hours: float) -> str:
    if hours >= _HOURS_A_YEAR:
        return f"{hours / _HOURS_A_YEAR:,.1f} years"
    if hours >= 2 * _HOURS_A_DAY:
        return f"{hours / _HOURS_A_DAY:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min"
