"""Rate limit per client: the generic cell rate algorithm (GCRA, ITU-T I.371).

A client has a theoretical arrival time TAT, one float. With emission interval T = 1 / rate and
burst b, a request at time t conforms if max(TAT, t) - t <= (b - 1) T; then TAT = max(TAT, t) + T.

docs/adr/0016-gcra-rate-limit.md says why not with the library `limits`.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from reki_ray.config.edge import address_of


class RateLimiter:
    """Limits clients in constant time and bounded memory.

    Args:
        per_second: Requests per second of a client.
        burst: Requests that an idle client may send at once.
        clients: Most clients remembered; the least recent one, nearest to a full allowance, is
            forgotten first.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        per_second: float,
        burst: int,
        clients: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 1.0 / per_second
        self._tolerance = (burst - 1) * self._interval
        self._most = clients
        self._clock = clock
        self._arrivals: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrivals)

    def wait(self, client: str) -> float:
        """Count a request and return 0, or the seconds until one is allowed without counting it."""
        now = self._clock()
        arrival = max(self._arrivals.get(client, now), now)
        excess = arrival - now - self._tolerance
        if excess > 1e-9:  # tolerates rounding
            self._arrivals.move_to_end(client)
            return excess
        self._arrivals[client] = arrival + self._interval
        self._arrivals.move_to_end(client)
        if len(self._arrivals) > self._most:
            self._arrivals.popitem(last=False)
        return 0.0


TRANSLATED: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::ffff:0:0:0/96"))
"""IPv4 clients behind a translator (NAT64, RFC 6052; SIIT, RFC 2765), in the last 32 bits."""


def network_of(address: str) -> str:
    """Return the part of an address that a client cannot choose: for IPv6, the /64 network."""
    parsed = address_of(address)
    if parsed is None:
        return address
    if parsed.version == 4:
        return str(parsed)
    if any(parsed in network for network in TRANSLATED):
        return str(ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF))
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))
