"""Authentication and authorization by bearer tokens (RFC 6750), and the rate limit per client.

Open to everyone: /healthz and /readyz for probes, the page with its style and scripts, which hold
no data, and /openapi.json. Everything else needs a token, /v1/admin that of operators. An
operator's token is also valid for the other calls.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from deployments.errors import ApiError
from deployments.middleware.rate_limiter import RateLimiter, network_of
from reki_ray.config.edge import EdgeConfig, EdgeSettings, is_loopback
from reki_ray.errors import ConfigError

MIN_CHARS: Final = 16
PROBES: Final = frozenset({"/healthz", "/readyz"})
PAGE: Final = {
    "/": "text/html",
    "/page.css": "text/css",
    "/base.js": "text/javascript",
    "/page.js": "text/javascript",
    "/operator.js": "text/javascript",
}
"""Paths of the page and their media types."""
OPEN: Final = PROBES | PAGE.keys() | {"/openapi.json"}
ADMIN: Final = "/v1/admin"
PASSED_ON: Final = frozenset(
    {
        *("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "client-ip"),
        *("true-client-ip", "cf-connecting-ip", "fastly-client-ip", "x-original-forwarded-for"),
    }
)
"""Headers of proxies besides x-forwarded-*: their sender is not the client."""

_FORM: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, b64token
_MAKE: Final = "Make one with `openssl rand -hex 32`."
_CHALLENGE: Final = 'Bearer realm="reki-ray"'

Role = Literal["admin", "user", "anonymous", "unknown"]


def read_tokens(variable: str, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the comma-separated tokens of a variable; empty if it is unset.

    Raises:
        ConfigError: A token is too short or has characters that are not allowed in a header.
    """
    tokens = tuple(part.strip() for part in environ.get(variable, "").split(",") if part.strip())
    for place, token in enumerate(tokens, start=1):
        if len(token) < MIN_CHARS or not _FORM.fullmatch(token):
            raise ConfigError(
                f"token {place} is not a valid bearer token: it needs at least {MIN_CHARS} "
                "letters, digits or -._~+/",
                where=f"environment variable {variable}",
                todo=_MAKE,
            )
    return tokens


def required_tokens(
    config: EdgeConfig, environ: Mapping[str, str] = os.environ
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens of callers and of operators.

    Raises:
        ConfigError: Callers need a token but none is set, a token is invalid, or a caller's token
            is an operator's too.
    """
    tokens = read_tokens(config.token_env, environ)
    admin = read_tokens(config.admin_token_env, environ)
    if not tokens and not config.allow_anonymous:
        raise ConfigError(
            "callers need a bearer token, but none is set",
            where=f"environment variable {config.token_env}",
            todo=f"Set it. {_MAKE} Or, only on this machine, set serve.edge.allow_anonymous.",
        )
    if set(tokens) & set(admin):
        raise ConfigError(
            "a caller's token is an operator's token too",
            where=f"environment variables {config.token_env} and {config.admin_token_env}",
            todo="Give operators a token of their own.",
        )
    return tokens, admin


def bearer(config: EdgeConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the headers to call the service with; empty without a token."""
    tokens = read_tokens(config.token_env, environ)
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}


class Caller(NamedTuple):
    """The sender of a request; `key` identifies the client for the rate limit."""

    role: Role  # `anonymous` without a token, `unknown` with a wrong one
    key: str  # never a token


class AccessControl:
    """Checks the token, in constant time, and the rate of requests.

    Args:
        on_limited: Called with the caller's role for every request above the limit.

    Raises:
        ConfigError: A token is missing or invalid.
    """

    def __init__(self, settings: EdgeSettings, on_limited: Callable[[str], None]) -> None:
        tokens, admin = required_tokens(settings)
        # Digests have a fixed length, so that a comparison does not leak that of the token.
        self._known: list[tuple[Role, bytes]] = [
            *(("admin", _digest(token.encode())) for token in admin),
            *(("user", _digest(token.encode())) for token in tokens),
        ]
        self._settings = settings
        self._has_admin = bool(admin)
        self._on_limited = on_limited
        self._limiter = None
        if settings.rate_per_second is not None:
            self._limiter = RateLimiter(
                settings.rate_per_second, settings.rate_burst, settings.rate_clients
            )

    def admit(self, scope: Scope) -> None:
        """Add the `caller` to the state of a request; raise an ApiError if it is refused."""
        caller = self._caller(scope)
        scope.setdefault("state", {})["caller"] = caller
        path = route_path(scope)
        # A 429 would make a probe restart a busy replica.
        limiter = None if path in PROBES else self._limiter
        wait = 0.0 if limiter is None else limiter.wait(caller.key)
        if wait:
            self._on_limited(caller.role)
            raise ApiError(
                429,
                "rate_limited",
                "Too many requests from this client; try again later.",
                details={"retry_after_seconds": round(wait, 3)},
                headers={"Retry-After": str(math.ceil(wait))},
            )
        self._require_access(caller, path, scope)

    def _caller(self, scope: Scope) -> Caller:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        peer = network_of((scope.get("client") or ("",))[0])
        if not sent:
            return Caller("anonymous", peer)
        scheme, _, token = sent[0].partition(b" ")
        if len(sent) > 1 or scheme.lower() != b"bearer":
            return Caller("unknown", peer)
        digest = _digest(token.strip())
        role: Role = "unknown"
        for known_role, known in self._known:  # all of them, in constant time
            if secrets.compare_digest(digest, known):
                role = known_role
        # A wrong token counts for its sender: otherwise each guess would be a new client.
        return Caller(role, peer if role == "unknown" else digest.hex())

    def _require_access(self, caller: Caller, path: str, scope: Scope) -> None:
        if path in OPEN:
            return
        if path == ADMIN or path.startswith(f"{ADMIN}/"):
            if not self._has_admin:
                raise ApiError(
                    403,
                    "admin_disabled",
                    "Operators' calls are disabled: set the environment variable "
                    f"{self._settings.admin_token_env} of the service to a token and restart it.",
                )
            if caller.role == "user":
                raise ApiError(403, "admin_only", "This call needs an operator's token.")
            if caller.role != "admin":
                raise _unauthorized(caller)
            return
        if caller.role in ("admin", "user"):
            return
        # On this machine, where the service only listens, anonymous callers may be allowed.
        peer = (scope.get("client") or ("",))[0]
        local = self._settings.loopback and is_loopback(peer) and not _is_passed_on(scope)
        open_locally = self._settings.allow_anonymous or path == "/metrics"
        if caller.role == "unknown" or not (open_locally and local):
            raise _unauthorized(caller)
        # A site can point its name to 127.0.0.1 (DNS rebinding) and read answers in the browsers of
        # its visitors: without tokens, the service only answers to names of this machine.
        if not _names_loopback(scope):
            raise ApiError(
                403, "foreign_host", "Without a token, call the service as localhost or 127.0.0.1."
            )


def route_path(scope: Scope) -> str:
    """Return the path below the application's root, as the router matches it."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def _unauthorized(caller: Caller) -> ApiError:
    challenge, code = _CHALLENGE, "token_needed"
    message = "Send a token: Authorization: Bearer TOKEN."
    if caller.role == "unknown":
        challenge, code = f'{_CHALLENGE}, error="invalid_token"', "invalid_token"
        message = "The bearer token is not valid."
    return ApiError(401, code, message, headers={"WWW-Authenticate": challenge})


def _is_passed_on(scope: Scope) -> bool:
    return any(
        name in PASSED_ON or name.startswith("x-forwarded-") for name in Headers(scope=scope)
    )


def _names_loopback(scope: Scope) -> bool:
    host = Headers(scope=scope).get("host", "")
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name.lower())


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
