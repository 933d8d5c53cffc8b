"""Secrets of the configuration, which nothing shows: passwords in URLs, tokens among variables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode

HIDDEN: Final = "**********"
"""What stands in place of a secret, as pydantic's SecretStr has it."""

_SECRET_NAME: Final = re.compile(
    r"(?i)(^|[_-])(token|secret|password|passwd|key|credentials?|authorization|signature|sig)$"
)
_URL: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)(.*)$", re.DOTALL)


def without_password(url: str) -> tuple[str, str | None]:
    """The URL of a Redis server without its password, and the password; None where it has none.

    Both `scheme://user:password@host` and `?password=` are looked for, as redis-py reads both.
    """
    return _split(url, lambda name: name == "password", last_at=True)


def shown(content: Any) -> Any:
    """JSON-ready content of a configuration as it may be shown: without passwords and tokens."""
    if isinstance(content, dict):
        return {
            name: HIDDEN
            if isinstance(value, str) and value and _SECRET_NAME.search(name)
            else shown(value)
            for name, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [shown(value) for value in content]
    if isinstance(content, str):
        return _split(content, lambda name: bool(_SECRET_NAME.search(name)))[0]
    return content


def _split(
    url: str, is_secret: Callable[[str], bool], *, last_at: bool = False
) -> tuple[str, str | None]:
    """A URL without its secrets, and one of them.

    Args:
        url: Any text.
        is_secret: Whether a field of the query is one, by its name.
        last_at: The last @ ends user and password, also behind a slash that should be escaped.
    """
    found = _URL.match(url)
    if found is None:
        return url, None
    scheme, rest = found.groups()
    secret = None
    rest, question, query = rest.partition("?")
    ends = len(rest) if last_at else len(rest.partition("/")[0])
    user, at, host = rest[:ends].rpartition("@")
    name, colon, password = user.partition(":")
    if at and colon:
        secret, rest = (
            unquote(password),
            f"{name}@{host}{rest[ends:]}" if name else host + rest[ends:],
        )
    fields = parse_qsl(query, keep_blank_values=True)
    kept = [(field, value) for field, value in fields if not is_secret(field)]
    if len(kept) < len(fields):
        secret = secret or next(value for field, value in fields if is_secret(field))
        question, query = "?" if kept else "", urlencode(kept)
    return f"{scheme}{rest}{question}{query}", secret
