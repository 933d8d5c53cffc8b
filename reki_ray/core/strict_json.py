"""JSON that every reader takes: Python's own writer lets NaN and Infinity through."""

from __future__ import annotations

import json
import math
from typing import Any


def strict_json(content: Any, **options: Any) -> str:
    """JSON-ready content as text; a float that is no finite number becomes null.

    Args:
        content: Dicts, lists, texts, numbers.
        options: Of `json.dumps`.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
