"""Hides the secrets of a configuration: passwords in URLs, tokens in variables."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, unquote_plus, urlencode

HIDDEN: Final = "**********"
"""Replaces a secret, as pydantic's SecretStr does."""

_SECRET_NAME: Final = re.compile(
    r"(?i)(?:(?:^|[^a-z])(?:key|pass|auth|sig|sas|jwt)"
    r"|tokens?|secrets?|passwords?|passwd|passphrase|passcode|pwd|credentials?|authorization"
    r"|signature|bearer|cookie"
    r"|(?:access|account|api|app|auth|encryption|function|license|master|private|secret|shared"
    r"|signing|subscription)key)"
    r"(?:[_-]?(?:pem|value|b64|base64|[0-9]+))?$"
)
_SECRET_FIELD: Final = re.compile(r"(?i)^(?:code|access_?code|assertion)$")
"""In queries only: an attribute of the data may be a code."""
_WHOLE: Final = re.compile(r"^\s*([A-Za-z][A-Za-z0-9+.-]*://)(.*?)\s*$", re.DOTALL)
_URL: Final = re.compile(
    r"((?:[A-Za-z][A-Za-z0-9+.-]*:|(?<!\S))//)([^\s\"'<>]+)",
)
_PORT: Final = re.compile(r"[^:]*(?::[0-9]*)?|\[.*\](?::[0-9]*)?")


def without_secrets(url: str) -> tuple[str, dict[str, str]]:
    """Split a Redis URL into the URL without secrets, and the secrets by name.

    redis-py reads both `scheme://user:password@host` and `?password=`.
    """
    match = _WHOLE.match(url)
    if match is None:
        return url, {}
    scheme, rest = match.groups()
    secrets = {}
    rest, question, query = rest.partition("?")
    user, at, host = rest.rpartition("@")  # the last @, also behind an unescaped /
    if at:
        name, colon, password = user.partition(":")
        rest = host
        if name:  # it may be a token
            secrets["username"] = unquote(name)
        if colon:
            secrets["password"] = unquote(password)
    fields = parse_qsl(query, keep_blank_values=True)
    kept = [(field, value) for field, value in fields if not _is_secret_field(field)]
    if len(kept) < len(fields):
        secrets = {**dict(field for field in fields if field not in kept), **secrets}
        question, query = "?" if kept else "", urlencode(kept)
    return f"{scheme}{rest}{question}{query}", secrets


def shown(content: Any) -> Any:
    """Copy of JSON-ready content without passwords and tokens."""
    if isinstance(content, dict):
        return {
            name: _hidden(value) if _SECRET_NAME.search(name) else shown(value)
            for name, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [shown(value) for value in content]
    if isinstance(content, str):
        whole = _WHOLE.match(content)  # a password may contain what would end a URL inside a text
        text = content if whole is None else _bare(whole)
        return _URL.sub(_bare, text)
    return content


def _hidden(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _hidden(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_hidden(value) for value in content]
    return HIDDEN if isinstance(content, str) and content else content


def _bare(url: re.Match[str]) -> str:
    """URL without user (which may be a token), password, and secrets of query and fragment."""
    scheme, rest = url.groups()
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        rest = host.rpartition("@")[2] + rest[len(host) :]
    elif not _PORT.fullmatch(host):  # not a port: a password with unescaped characters
        rest = rest.rpartition("@")[2]
    path, *parts = re.split("([?#])", rest)
    for mark, fields in zip(parts[::2], parts[1::2], strict=True):
        kept = _without_secret_fields(fields)
        path += mark + kept if kept or not fields else ""
    return scheme + path


def _without_secret_fields(fields: str) -> str:
    given, kept = re.split("[&;]", fields), []
    for field in given:
        name, equals, value = field.partition("=")
        if not (equals and _is_secret_field(unquote_plus(name))):
            plain = unquote_plus(value)
            kept.append(field if shown(plain) == plain else f"{name}={HIDDEN}")
    return fields if kept == given else "&".join(kept)


def _is_secret_field(name: str) -> bool:
    return bool(_SECRET_NAME.search(name) or _SECRET_FIELD.search(name))
