"""The estimate of `reki plan` as tables."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ByteSize
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reki_ray.core.formats import counted, duration
from reki_ray.extraction.capacity import Capacity
from reki_ray.extraction.cost_estimate import Estimate, ModeEstimate, short_number
from reki_ray.extraction.token_counts import Interval


def render(estimate: Estimate) -> Group:
    """Both modes side by side, the prompts of each kind, and the assumptions."""
    assumptions = "\n".join(f"- {sentence}" for sentence in estimate.assumptions)
    return Group(
        _modes_table(estimate),
        _kinds_table(estimate),
        *([] if estimate.capacity is None else _capacity(estimate.capacity, estimate.currency)),
        Text(f"Measured on samples. Assumed:\n{assumptions}"),
    )


def _modes_table(estimate: Estimate) -> Table:
    engines = counted(estimate.engines, "engine")
    title = Text(f"plan of {estimate.name}: {estimate.model}, {engines}")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for mode in estimate.modes:
        configured = " (configured)" if mode.mode == estimate.configured else ""
        table.add_column(f"{mode.mode}{configured}", justify="right")

    def cached(mode: ModeEstimate) -> str:
        share = mode.cached_tokens / mode.prompt_tokens.mean if mode.prompt_tokens.mean else 0
        return f"{short_number(mode.cached_tokens)} ({share:.0%})" if share else "0"

    rows: list[tuple[str, Callable[[ModeEstimate], str]]] = [
        ("subjects", lambda mode: f"{mode.subjects:,}"),
        ("prompts without duplicates", lambda mode: f"{mode.prompts:,}"),
        ("prompt tokens", lambda mode: _range(mode.prompt_tokens)),
        ("of these cached", cached),
        ("generated tokens", lambda mode: _range(mode.generated_tokens)),
        ("engine hours", lambda mode: _range(mode.engine_hours)),
        ("GPU hours", lambda mode: _range(mode.gpu_hours)),
        (f"money, {estimate.currency}", lambda mode: _range(mode.cost)),
        (f"wall time, {engines}", lambda mode: _range(mode.wall_hours * 3600, duration)),
        ("storage", lambda mode: _size(mode.storage.total)),
        ("  rendered prompts", lambda mode: _size(mode.storage.plan)),
        ("  ledger", lambda mode: _size(mode.storage.ledger)),
        ("  knowledge", lambda mode: _size(mode.storage.knowledge)),
        ("  representations", lambda mode: _size(mode.storage.representations)),
        ("  published vectors", lambda mode: _size(mode.storage.published)),
    ]
    for name, cell in rows:
        last = name == "generated tokens" or name.startswith("wall time")
        table.add_row(name, *map(cell, estimate.modes), end_section=last)
    return table


def _kinds_table(estimate: Estimate) -> Table:
    table = Table(title="prompts by kind", title_justify="left")
    table.add_column("kind")
    for heading in (
        "subjects",
        "duplicates",
        "sampled",
        "tokens per prompt",
        "cached",
        "tokens per answer",
    ):
        table.add_column(heading, justify="right")
    for kind in (kind for mode in estimate.modes for kind in mode.kinds):
        table.add_row(
            kind.kind,
            f"{kind.subjects:,}",
            f"{kind.duplicate_share:.1%}",
            f"{kind.sampled:,}",
            _range(kind.prompt_tokens, "{:,.0f}".format),
            f"{kind.cached_tokens:,}",
            _range(kind.generated_tokens, "{:,.0f}".format),
        )
    return table


def _capacity(needs: Capacity, currency: str) -> list[Table | Text]:
    title = f"service for {needs.requests_per_second:,.0f} requests/s"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    days = f"{needs.refresh_days:g} days"
    for name, value in (
        (f"engines that renew all knowledge in {days}", f"{needs.engines:,}"),
        ("days per renewal as configured", short_number(needs.refresh_days_as_configured)),
        ("GPU hours per month", short_number(needs.gpu_hours)),
        ("storage of the workspace", _size(needs.storage)),
        ("serving cores, nodes", f"{needs.serving_cores:,}, {needs.serving_nodes:,}"),
        ("gateways, lookups, scorers: each", f"{needs.serving_replicas:,}"),
        ("memory, disk per serving node", f"{_size(needs.node_memory)}, {_size(needs.node_disk)}"),
        ("hours, memory of HDBSCAN", f"{needs.clustering_hours:.1f}, "
         f"{_size(needs.clustering_memory)}"),
        (f"extraction, {currency} per month", short_number(needs.extraction_cost)),
        (f"serving, {currency} per month", short_number(needs.serving_cost)),
    ):  # fmt: skip
        table.add_row(name, value)
    first = "\n".join(f"- {text}" for text in needs.breaks_first) or "- nothing on this list"
    return [table, Text(f"What breaks first:\n{first}")]


def _range(interval: Interval, text: Callable[[float], str] = short_number) -> str:
    mean, low, high = map(text, (interval.mean, interval.low, interval.high))
    return mean if low == mean == high else f"{mean} [{low}..{high}]"


def _size(value: ByteSize) -> str:
    return value.human_readable(separator=" ")
