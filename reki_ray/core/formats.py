"""Numbers formatted for people."""

from __future__ import annotations

import math
from typing import Any


def counted(number: int, unit: str) -> str:
    """A number with its unit in the singular or plural, as `1 seed` or `1,204 seeds`."""
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def duration(seconds: float) -> str:
    """A duration in its two largest units, as `8.4 s`, `12 min 5 s`, `3 h 20 min` or `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return _pair(minutes, "min", rest, "s")
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 24:
        return _pair(hours, "h", rest, "min")
    days, rest = divmod(round(seconds / 3600), 24)
    return _pair(days, "d", rest, "h")


def _pair(count: int, large: str, rest: int, small: str) -> str:
    return f"{count} {large} {rest} {small}" if rest else f"{count} {large}"


def interval(value: float | None, bounds: list[float] | None, *, signed: bool = False) -> str:
    """A value with its interval, as `0.7812 [0.7750, 0.7874]`; a dash if undefined."""
    if value is None or not math.isfinite(value):
        return "-"
    sign = "+" if signed else ""
    if not bounds or not all(end is not None and math.isfinite(end) for end in bounds):
        return f"{value:{sign}.4f}"
    return f"{value:{sign}.4f} [{bounds[0]:{sign}.4f}, {bounds[1]:{sign}.4f}]"


def number(value: Any) -> str:
    """A count or rate with thousands separators; other values unchanged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if math.isfinite(value) else "-"


def milliseconds(value: float | None) -> str:
    """A time, as `11.9 ms`; a dash if undefined."""
    return "-" if value is None else f"{value:.1f} ms"


def address(host: str, port: int | str) -> str:
    """Host and port of a URL, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
