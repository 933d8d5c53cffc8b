"""Vectors on a Redis or Valkey server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from typing_extensions import override

from reki_ray.config import AdapterSettings
from reki_ray.errors import ConfigError, StoreError
from reki_ray.store.kv import (
    Advance,
    Meta,
    ServedVectors,
    meta_key,
    pack,
    replaceable_meta,
)
from reki_ray.store.vectors import VectorTable

_ROWS_A_STEP: Final = 2_000
"""A server answers one call at a time: a whole catalogue in one would keep all others waiting."""
_EXPORT_SECONDS: Final = 30.0
"""A server that saves to its disk may keep a writer waiting longer than a reader may wait."""


class RedisVectors(ServedVectors):
    """Vectors of one side of a version on a server."""

    _client: redis.Redis | None

    @override
    def connect(self, settings: AdapterSettings) -> str:
        self._client = connect(settings, settings.timeout_seconds)
        return settings.url

    @override
    def fetch(self, keys: Sequence[bytes]) -> list[bytes | None]:
        client = self._client
        if client is None:
            raise self.closed_error()
        values: list[bytes | None] = []
        with store_errors(self._where):
            for start in range(0, len(keys), _ROWS_A_STEP):
                step = list(keys[start : start + _ROWS_A_STEP])
                values += cast(list[bytes | None], client.mget(step))
        return values

    @override
    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    @staticmethod
    @override
    def export_side(
        settings: AdapterSettings,
        prefix: bytes,
        vectors: VectorTable,
        meta: Meta,
        advance: Advance,
    ) -> None:
        client = connect(settings, max(settings.timeout_seconds, _EXPORT_SECONDS))
        try:
            with store_errors(settings.url):
                stored = cast("bytes | None", client.get(meta_key(prefix)))
                there = replaceable_meta(stored, settings.url, prefix)
                if there not in (None, meta):
                    raise StoreError(
                        f"the server holds another store's {prefix.decode()}",
                        where=settings.url,
                        todo="Choose another store.vectors.namespace, or remove these keys.",
                    )
                for batch in vectors.batches(_ROWS_A_STEP):
                    rows = pack(prefix, batch)
                    # A server may have lost or damaged some: what is there is compared.
                    if there is not None and client.mget(list(rows)) == list(rows.values()):
                        continue
                    client.mset(cast("dict[Any, Any]", rows))
                    advance(len(rows))
                client.set(meta_key(prefix), meta.model_dump_json().encode())
        finally:
            client.close()


def connect(settings: AdapterSettings, seconds: float) -> redis.Redis:
    """A client with a pool of connections, safe to share between threads.

    Raises:
        ConfigError: The URL is not one of Redis.
    """
    secrets = {name: value.get_secret_value() for name, value in settings.url_secrets.items()}
    try:
        client = redis.Redis.from_url(
            settings.url,
            password=settings.secret(),
            **secrets,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            # Once more at once: a server closes connections that were idle for long. A server
            # that is slow would only take the time of a call twice.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # refuses fields that it does not know
    except (ValueError, TypeError):
        # Neither quoted nor kept: redis-py's text repeats the part that it does not understand.
        raise ConfigError(
            "the address is not a URL of a server",
            where="store.vectors.url",
            todo="Write it as redis://host:6379/0; redis-py's documentation lists its fields.",
        ) from None
    return client


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn a server's errors into a StoreError."""
    try:
        yield
    except redis.RedisError as error:
        raise StoreError(
            f"the server of vectors does not answer: {type(error).__name__}: {error}",
            where=where,
            todo="Start the server, or set store.vectors.url and timeout_seconds.",
        ) from error
