"""Client of an OpenAI-compatible endpoint, whose calls end with an answer, a reason or an error.

The official client sends the requests, with its retries off: they hide calls that count against a
budget, do not bound a body that drips, refuse a Retry-After above two minutes, and have no limit of
the time per prompt.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import openai
from pydantic import SecretStr

from reki_ray.config import OpenAiEngine, PriceConfig
from reki_ray.errors import ConfigError, EngineError
from reki_ray.llm.completion import (
    EndpointError,
    MalformedError,
    NoAnswerError,
    Read,
    RequestBuilder,
    one_line,
    read_completion,
)
from reki_ray.llm.prices import token_cost
from reki_ray.llm.reservation import Reservation
from reki_ray.llm.retry_policy import fatal, filtered, is_retried, wait_seconds
from reki_ray.prompts.chat import Message
from reki_ray.prompts.template import Reply

_PATH: Final = "/chat/completions"
_SHOWN_PARAMETERS: Final = frozenset({"api-version", "version", "deployment", "region"})


@dataclass(frozen=True)
class Address:
    """The address of an endpoint.

    Attributes:
        base: Root of the endpoint without its query.
        query: Parameters of each request, such as Azure's `api-version`.
        shown: URL for messages; values that may be secrets are masked.
    """

    base: str
    query: dict[str, str]
    shown: str

    @classmethod
    def of(cls, base_url: str) -> Address:
        """The parts of `extract.engine.base_url`."""
        parts = urlsplit(base_url)
        # The client appends the path itself.
        path = parts.path.rstrip("/").removesuffix(_PATH)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        base = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        host = parts.netloc.rpartition("@")[2]
        known = {key: query[key] if key in _SHOWN_PARAMETERS else "***" for key in query}
        shown = urlunsplit((parts.scheme, host, path + _PATH, urlencode(known, safe="*"), ""))
        return cls(base, query, shown)


_AUTHORIZATION = "authorization"
_CERTIFICATE_FOLDERS = "SSL_CERT_DIR"
_CERTIFICATES = ("SSL_CERT_FILE", _CERTIFICATE_FOLDERS)
_CONNECT_SECONDS = 10.0
_HOPELESS = 10
_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})


@dataclass(eq=False)
class RefusedError(Exception):
    """One prompt gets no answer; others may."""

    reason: str
    reply: Reply | None = None


@dataclass(eq=False)
class _CallError(Exception):
    """One call failed; another may succeed.

    Attributes:
        billed: Whether the endpoint may charge for it.
    """

    reason: str
    billed: bool
    headers: Mapping[str, str] = field(default_factory=dict)
    retry: bool = True


def require_certificates() -> None:
    """Refuse environment variables that name certificates which cannot be loaded.

    The client would fail without naming the variable or the file.

    Raises:
        ConfigError: The certificates are missing, unreadable or invalid.
    """
    for variable in _CERTIFICATES:
        path = os.environ.get(variable)
        wrong = _wrong_certificates(variable, path) if path else ""
        if wrong:
            raise ConfigError(
                f"the environment variable {variable} names {path}, which {wrong} on "
                f"{socket.gethostname()}",
                where=variable,
                todo=f"Correct it, or `unset {variable}` to use the certificates that came with "
                "Python. A moved or removed environment leaves such variables behind.",
            )


def _wrong_certificates(variable: str, path: str) -> str:
    """Why certificates cannot be loaded; empty if they can."""
    if variable == _CERTIFICATE_FOLDERS:
        # OpenSSL skips missing folders.
        folders = [part for part in path.split(os.pathsep) if part]
        readable = any(os.path.isdir(part) and os.access(part, os.R_OK) for part in folders)
        return "" if readable else "is not a readable folder"
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        return "holds no certificates in PEM format"
    except OSError:
        return "cannot be read"
    return ""


class Endpoint:
    """Calls one endpoint.

    Raises:
        ConfigError: The environment names certificates that cannot be loaded.
    """

    def __init__(
        self,
        config: OpenAiEngine,
        requests: RequestBuilder,
        prices: PriceConfig,
        key: SecretStr | None,
    ) -> None:
        for library in ("httpx", "httpx2", "openai"):  # one log line per request is noise
            logging.getLogger(library).setLevel(logging.WARNING)
        self._config = config
        self._requests = requests
        self._prices = prices
        self._key = key
        self._given_up = 0
        self._last_reason = ""
        self._address = Address.of(config.base_url)
        # Without a key, or with one in another header, the client requires each request to omit
        # the bearer token explicitly.
        secret = key.get_secret_value() if key else ""
        bearer = config.api_key_header.lower() == _AUTHORIZATION
        self._headers: dict[str, str | openai.Omit] = {}
        if not (secret and bearer):
            self._headers["Authorization"] = openai.Omit()
        if secret and not bearer:
            self._headers[config.api_key_header] = secret
        require_certificates()
        self._client = openai.AsyncOpenAI(
            base_url=self._address.base,
            default_query=self._address.query,
            api_key=secret or "none",
            max_retries=0,
            # The whole read is bounded below: a dripping body never exceeds the limit of one read.
            timeout=openai.Timeout(None, connect=min(_CONNECT_SECONDS, config.timeout_seconds)),
        )

    def most_cost(self, messages: Sequence[Message]) -> float:
        """Upper bound of the cost of one call, if the endpoint respects the maximal length."""
        prompt = self._requests.most_prompt_tokens(messages)
        full_price = self._prices.model_copy(update={"cached_tokens": None})
        return token_cost(full_price, prompt, 0, self._requests.longest_answer)

    def require_hope(self) -> None:
        """Refuse more work after too many prompts in a row without an answer.

        Raises:
            EngineError: The endpoint answered none of the last prompts.
        """
        if self._hopeless:
            raise EngineError(
                f"the endpoint left {self._given_up} prompts in a row without an answer, the last: "
                f"{self._last_reason}",
                where=f"{self._address.shown} (extract.engine.base_url)",
                todo="Wait until it recovers, or correct its address, then run again: only the "
                "missing prompts are sent.",
            )

    async def ask(
        self,
        messages: Sequence[Message],
        deadline: float,
        reservation: Reservation,
        *,
        reserved: bool,
    ) -> Reply:
        """Call until there is an answer, or no further call makes sense.

        Args:
            deadline: Time of the event loop after which no call is made.
            reserved: Whether the money of the first call is already reserved.

        Raises:
            RefusedError: This prompt gets no answer.
            EngineError: Every prompt would fail.
        """
        most = self.most_cost(messages)
        tried = 0
        try:
            if asyncio.get_running_loop().time() >= deadline:
                raise RefusedError("error: no time is left for asking again")
            while True:
                if not reserved and not await reservation.reserve(most):
                    raise RefusedError("error: the budget does not last for asking again")
                reserved, tried = False, tried + 1
                try:
                    return (await self._call(messages, deadline, reservation, most)).reply
                except _CallError as failed:
                    reserved = not failed.billed
                    await self._wait(failed, tried, deadline)
                except NoAnswerError as none:
                    raise RefusedError(none.reason, none.read.reply) from None
        finally:
            if reserved:
                reservation.release(most)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    # --- one call ------------------------------------------------------------------------------

    async def _call(
        self, messages: Sequence[Message], deadline: float, reservation: Reservation, most: float
    ) -> Read:
        """One call, charged to the reservation unless it cannot have cost anything."""
        # A call that is cancelled, or fails for an unknown reason, may be billed.
        cost: float | None = most
        try:
            read = await self._read(messages, deadline)
            cost = self._cost(read, most)
        except NoAnswerError as none:
            self._give_up(none.reason.partition(": ")[2])
            cost = self._cost(none.read, most)
            raise
        except _CallError as failed:
            cost = most if failed.billed else None
            raise
        except (RefusedError, EngineError):  # refused by its status: nothing was generated
            cost = None
            reservation.release(most)
            raise
        finally:
            if cost is not None:
                reservation.charge(most, cost)
        self._given_up = 0
        return read

    async def _read(self, messages: Sequence[Message], deadline: float) -> Read:
        seconds = self._config.timeout_seconds
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now + seconds, deadline)):
                raw = await self._client.chat.completions.with_raw_response.create(
                    **self._requests.request(messages), extra_headers=self._headers
                )
                return read_completion(raw.content)
        except TimeoutError:
            waited = min(seconds, deadline - now)
            raise _CallError(f"no whole answer within {waited:.1f} s", billed=True) from None
        except MalformedError as error:
            raise _CallError(str(error), billed=True, retry=error.retry) from None
        except EndpointError as error:
            message = f"{self._redacted(error.message)} (in an answer with HTTP status 200)"
            raise self._by_status(error.status, error.code, message, raw.headers) from None
        except openai.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            message = self._redacted(str(body.get("message") or error.message))
            code = str(body.get("code") or "")
            raise self._by_status(
                error.status_code, code, message, error.response.headers
            ) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            message = self._redacted(f"{error.message} {error.__cause__ or cause}")
            raise _CallError(
                f"connection failed: {message}", billed=cause not in _NOT_SENT
            ) from None

    def _by_status(
        self, status: int, code: str, message: str, headers: Mapping[str, str]
    ) -> Exception:
        stop = fatal(self._config, self._address.shown, status, code, message)
        if stop is not None:
            return stop
        if is_retried(status):
            # Below 500 no work was done; an error of a proxy may come after the work.
            return _CallError(f"HTTP {status}: {message}", status >= 500, headers)
        self._given_up = 0
        if filtered(code, message):
            return RefusedError(
                f"filter: the content filter of the endpoint refused the prompt: {message}"
            )
        return RefusedError(f"error: the endpoint refused the prompt (HTTP {status}): {message}")

    # --- between calls -------------------------------------------------------------------------

    async def _wait(self, failed: _CallError, tried: int, deadline: float) -> None:
        seconds = wait_seconds(tried, failed.headers)
        late = asyncio.get_running_loop().time() + seconds >= deadline
        if late or not failed.retry or tried > self._config.max_retries or self._hopeless:
            self._give_up(failed.reason)
            calls = "1 call" if tried == 1 else f"{tried} calls"
            raise RefusedError(f"error: given up after {calls}: {failed.reason}")
        await asyncio.sleep(seconds)

    def _give_up(self, reason: str) -> None:
        self._given_up += 1
        self._last_reason = reason

    @property
    def _hopeless(self) -> bool:
        return self._given_up >= _HOPELESS

    def _cost(self, read: Read, most: float) -> float:
        reply = read.reply
        if not read.counted:
            return most
        return token_cost(
            self._prices, reply.prompt_tokens, reply.cached_tokens, reply.generated_tokens
        )

    def _redacted(self, text: str) -> str:
        secret = self._key.get_secret_value() if self._key else ""
        return one_line(text.replace(secret, "***") if secret else text)
