"""Rate limit per client: the generic cell rate algorithm (GCRA, ITU-T I.371).

A client has a theoretical arrival time TAT, one float. With emission interval T = 1 / rate and
burst b, a request at time t conforms if max(TAT, t) - t <= (b - 1) T; then TAT = max(TAT, t) + T.

Not the library `limits`: its store in memory (5.8) sweeps all clients in a thread every 10 ms
while requests come, keeps a list of times a client, and does not bound the number of clients.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from reki_ray.config.edge import address_of


class RateLimiter:
    """Decides in constant time and with bounded memory.

    Args:
        per_second: Requests a second of one client.
        burst: Requests at once after a rest.
        clients: Most clients remembered; the one longest silent is forgotten first, which is
            the one nearest to a full allowance.
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
        """Count a request.

        Returns:
            0 if it may pass; else the seconds until one may, and this one does not count.
        """
        now = self._clock()
        arrival = max(self._arrivals.get(client, now), now)
        excess = arrival - now - self._tolerance
        if excess > 1e-9:  # rounding alone never refuses
            self._arrivals.move_to_end(client)
            return excess
        self._arrivals[client] = arrival + self._interval
        self._arrivals.move_to_end(client)
        if len(self._arrivals) > self._most:
            self._arrivals.popitem(last=False)
        return 0.0


TRANSLATED: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::ffff:0:0:0/96"))
"""IPv4 clients behind a translator (NAT64, RFC 6052; SIIT, RFC 2765): the last 32 bits tell who."""


def network_of(address: str) -> str:
    """The part of an address that one client cannot change at will: of IPv6, the /64 network."""
    found = address_of(address)
    if found is None:
        return address
    if found.version == 4:
        return str(found)
    if any(found in network for network in TRANSLATED):
        return str(ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF))
    return str(ipaddress.ip_network((int(found), 64), strict=False))
