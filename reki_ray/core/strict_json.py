"""Standard JSON, without the NaN and Infinity of Python's own writer."""

from __future__ import annotations

import json
import math
from typing import Any


def strict_json(content: Any, **options: Any) -> str:
    """Serialise JSON-ready content, with null for NaN and infinity, by `json.dumps(**options)`."""
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
