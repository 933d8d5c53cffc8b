"""Numbers as people write them: with a currency, a unit, thousands apart or a decimal comma."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

_GAP: Final = r"[ '\u00a0\u202f\u2019]"
_CURRENCY: Final = "$€£¥₹₽₩₺₫₪₴฿"
_DIGITS: Final = "|".join(
    (
        r"(?P<point>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)",
        rf"(?P<thousands>\d{{1,3}}(?:(?:,\d{{2,3}})*,\d{{3}}|(?:{_GAP}\d{{3}})+)(?:\.\d+)?)",
        rf"(?P<comma>\d{{1,3}}(?:(?:\.\d{{3}})+|(?:{_GAP}\d{{3}})+),\d+"
        r"|\d{1,3}(?:\.\d{3}){2,}|\d+,\d+)",
    )
)
_AMOUNT: Final = re.compile(
    rf"(?P<sign>[+-]?)(?P<before>(?:[A-Z]{{0,3}}[{_CURRENCY}]|[A-Z]{{3}} ) ?)?(?P<minus>-?)"
    rf"(?:{_DIGITS})(?P<after> ?(?:[%‰{_CURRENCY}]|[^\W\d_°²³]{{1,12}}))?"
)
_DIVIDERS: Final = re.compile(r"[., '\u00a0\u202f\u2019]")


def read_amount(text: str) -> tuple[float, str] | None:
    """The finite number that a text plainly is, and its unit.

    Besides `9.99` and `1e3`: `$1,234.50`, `1.234,50 €`, `9,99`, `45 %`, `12 kg`, `USD 5`. One
    comma before three digits divides thousands.

    Returns:
        Number and unit, empty where it has none; None where the text is no number.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        return None
    digits, mark = found["point"], ""
    if found["thousands"]:
        digits, mark = found["thousands"], "."
    elif found["comma"]:
        digits, mark = found["comma"], ","
    if mark:
        whole, _, fraction = digits.partition(mark) if digits.count(mark) == 1 else (digits, "", "")
        digits = f"{_DIVIDERS.sub('', whole)}.{fraction}"
    number = float(f"{found['sign'] or found['minus']}{digits}")
    unit = f"{found['before'] or ''}{found['after'] or ''}".replace(" ", "")
    return (number, unit) if math.isfinite(number) else None


def describe_amounts(values: Mapping[str, int]) -> str:
    """What is odd about texts that should be numbers of one unit; empty where nothing is.

    Args:
        values: Text -> how often it is there.
    """
    units: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for text, count in values.items():
        amount = read_amount(text)
        if amount is None:
            others[text] += count
        else:
            units[amount[1]] += count
    odd = []
    if others:
        shown = ", ".join(repr(text) for text, _ in others.most_common(3))
        odd.append(f"{others.total()} of {sum(values.values())} are no numbers, as {shown}")
    if len(units) > 1:
        shown = ", ".join(f"{unit or 'none'} ({count})" for unit, count in units.most_common(5))
        odd.append(f"their units differ: {shown}")
    return "; ".join(odd)
