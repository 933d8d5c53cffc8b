"""Bearer tokens from the environment; never from files of the configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from reki_ray.config.edge import EdgeConfig
from reki_ray.errors import ConfigError

MIN_CHARS: Final = 16
_FORM: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, b64token
_MAKE: Final = "Make one with `openssl rand -hex 32`."


def read_tokens(variable: str, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Tokens of a variable, which separates them by commas; empty where it is not set.

    Raises:
        ConfigError: One is too short, or has characters that no header may carry.
    """
    found = tuple(part.strip() for part in environ.get(variable, "").split(",") if part.strip())
    for place, token in enumerate(found, start=1):
        if len(token) < MIN_CHARS or not _FORM.fullmatch(token):
            raise ConfigError(
                f"token {place} is no usable bearer token: it needs at least {MIN_CHARS} letters, "
                "digits or -._~+/",
                where=f"environment variable {variable}",
                todo=_MAKE,
            )
    return found


def required_tokens(
    config: EdgeConfig, environ: Mapping[str, str] = os.environ
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens of callers and of operators.

    Raises:
        ConfigError: None is set though callers need one, one is unusable, or a caller's token is
            an operator's too.
    """
    tokens = read_tokens(config.token_env, environ)
    admin = read_tokens(config.admin_token_env, environ)
    if not tokens and not config.allow_anonymous:
        raise ConfigError(
            "callers need a bearer token, but none is set",
            where=f"environment variable {config.token_env}",
            todo=f"Set it. {_MAKE} Or, for this machine alone, set serve.edge.allow_anonymous.",
        )
    if set(tokens) & set(admin):
        raise ConfigError(
            "a caller's token is an operator's token too",
            where=f"environment variables {config.token_env} and {config.admin_token_env}",
            todo="Give operators a token of their own.",
        )
    return tokens, admin


def bearer(config: EdgeConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Headers with which a program beside the service calls it; empty without a token."""
    tokens = read_tokens(config.token_env, environ)
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}
