"""Access to the service: tokens, rate and size limits, request logs, traces."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from reki_ray.config.base import Section
from reki_ray.config.secrets import HIDDEN

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class EdgeConfig(Section):
    """Access to the service: tokens, limits, request logs, tracing."""

    token_env: str = Field("REKI_TOKEN", pattern=_VARIABLE)
    """Environment variable with the bearer token; several, separated by commas, are valid at the
    same time, for rotation."""
    admin_token_env: str = Field("REKI_ADMIN_TOKEN", pattern=_VARIABLE)
    """Environment variable with the token of /v1/admin; if unset, these calls are refused."""
    allow_anonymous: bool = False
    """Answer callers without a token; only if serve.host is a loopback address. /v1/admin always
    needs its token."""
    rate_per_second: float | None = Field(200.0, gt=0)
    """Requests per second of one client on one replica; null: no limit."""
    rate_burst: int = Field(1000, ge=1)
    """Requests that an idle client may send at once."""
    rate_clients: int = Field(100_000, ge=1)
    """Clients remembered; the least recent ones are forgotten first."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For names the client."""
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest body, bytes.")
    max_header_bytes: int = Field(16_384, ge=1024, description="Largest sum of all headers, bytes.")
    max_url_bytes: int = Field(8_192, ge=256, description="Longest path and query together, bytes.")
    body_seconds: float = Field(10.0, gt=0, description="Timeout for receiving a body.")
    request_logs: bool = True
    """One JSON line per request, without ids of users and items."""
    otlp_endpoint: SecretStr | None = None
    """Endpoint for traces (OTLP/HTTP), such as http://127.0.0.1:4318/v1/traces; never shown, as it
    may hold a token. Null: no tracing."""

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"{error}; write 10.0.0.7 or 10.0.0.0/8") from error
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or value.get_secret_value() == HIDDEN:  # read back from shown settings
            return None
        if not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("write it as http://127.0.0.1:4318/v1/traces")
        return value

    def at(self, host: str) -> EdgeSettings:
        """Return these settings for a service at an address.

        Raises:
            ValidationError: Other machines reach the service, but it requires no token.
        """
        return EdgeSettings.model_validate({**self.model_dump(), "host": host})


class EdgeSettings(EdgeConfig):
    """`EdgeConfig` at the address of the service."""

    host: str = Field("127.0.0.1", description="Address that the service listens on.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the service."""
        return is_loopback(self.host)

    @model_validator(mode="after")
    def _is_closed_to_others(self) -> Self:
        if self.allow_anonymous and not self.loopback:
            raise ValueError(
                f"allow_anonymous is only for a service on this machine, but serve.host is "
                f"{self.host}: set serve.host to 127.0.0.1, or allow_anonymous to false and a "
                f"token in the variable {self.token_env}"
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    address = address_of(host)
    return address is not None and address.is_loopback  # any other name may lead anywhere


def networks(texts: Iterable[str]) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Parse networks; those of IPv4 also as ::ffff:a.b.c.d, see `address_of`."""
    for network in map(ipaddress.ip_network, texts):
        yield network
        if network.version == 4:
            mapped = int(ipaddress.IPv6Address(f"::ffff:{network.network_address}"))
            yield ipaddress.IPv6Network((mapped, 96 + network.prefixlen))


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address; None if it is not one.

    A listener for both protocols shows IPv4 peers as ::ffff:a.b.c.d, which become a.b.c.d.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
