"""Where an OpenAI-compatible endpoint is asked, and how that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_PATH: Final = "/chat/completions"
_SHOWN_PARAMETERS: Final = frozenset({"api-version", "version", "deployment", "region"})


@dataclass(frozen=True)
class Address:
    """The address of an endpoint.

    Attributes:
        base: Root of the endpoint without its query.
        query: Parameters of each request, as Azure's `api-version`.
        shown: What is asked, for messages; values that may be secrets are left out.
    """

    base: str
    query: dict[str, str]
    shown: str

    @classmethod
    def of(cls, base_url: str) -> Address:
        """The parts of `extract.engine.base_url`."""
        parts = urlsplit(base_url)
        # What a client appends itself may have been copied along.
        path = parts.path.rstrip("/").removesuffix(_PATH)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        base = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        host = parts.netloc.rpartition("@")[2]
        known = {key: query[key] if key in _SHOWN_PARAMETERS else "***" for key in query}
        shown = urlunsplit((parts.scheme, host, path + _PATH, urlencode(known, safe="*"), ""))
        return cls(base, query, shown)
