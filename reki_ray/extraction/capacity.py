"""What a service of a given size needs: engines, storage, nodes, cost; and what breaks first.

The unit costs are those of docs/results/benchmarks.md, measured on 2 cores of a server processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ByteSize

from reki_ray.config import RekiConfig

MEASURED: Final = {
    "saturation_per_s": 191.0,  # requests with 100 candidates, gateway, lookup and scorer
    "hdbscan_1m_seconds": 88.0,
    "hdbscan_1m_rss_gib": 3.38,
    "growth_exponent": 0.986,
    "streakhc_inserts_per_s": 3924.0,
}
_MEASURED_CORES: Final = 2
_LOAD: Final = 0.7
"""Share of the saturation at which a service runs; the benchmark's p99 is measured there."""
NODE_CORES, NODE_GIB = 8, 32
"""Size of a CPU node, as the head of cluster.yaml."""
_VERSIONS: Final = 2
"""Versions on each serving node: the current one and the next, or the one to go back to."""
_UNIT_BYTES: Final = 30 * 2**10
"""What Ray Data notes in the driver about a work unit; measured by benchmarks/extract.py."""
_MONTH_HOURS: Final = 30 * 24
_SERVE_REPLICAS: Final = 1000
"""Replicas up to which one Serve controller is commonly run; not measured here."""


@dataclass(frozen=True)
class Renewal:
    """One extraction of all knowledge, as the plan estimates it; sizes in bytes."""

    prompts: int
    engine_hours: float
    gpu_hours: float
    wall_hours: float
    cost: float
    storage: int
    published: int


class Capacity(BaseModel):
    """Needs of a whole service, for the configured mode of extraction.

    Attributes:
        refresh_days: Time in which all knowledge is renewed once.
        engines: Replicas that renew it in that time, all day at work.
        refresh_days_as_configured: Time that the estimate's number of engines takes.
        gpu_hours: Per month, as the costs.
        storage: Disk space of the workspace.
        serving_cores: Cores of gateways, lookups and scorers.
        serving_replicas: Of each of the three; more of a part only where it is the slow one.
        node_memory: Pages of the published vectors, mapped once per serving node.
        node_disk: Space of the versions on each serving node.
        clustering_hours: HDBSCAN on one node, both sides one after the other.
        clustering_memory: Memory of HDBSCAN for the larger side.
        breaks_first: What exceeds a node or a single process, the worst first.
    """

    requests_per_second: float
    refresh_days: float
    engines: int
    refresh_days_as_configured: float
    gpu_hours: float
    storage: ByteSize
    serving_cores: int
    serving_replicas: int
    serving_nodes: int
    node_memory: ByteSize
    node_disk: ByteSize
    clustering_hours: float
    clustering_memory: ByteSize
    extraction_cost: float
    serving_cost: float
    breaks_first: list[str]


def service_capacity(
    config: RekiConfig,
    renewal: Renewal,
    sides: tuple[int, int],
    requests_per_second: float,
    refresh_days: float,
) -> Capacity:
    """Compute the needs from the plan of one renewal; `sides` are the users and the items."""
    refreshes = 30 / refresh_days
    per_core = MEASURED["saturation_per_s"] / _MEASURED_CORES * _LOAD
    cores = math.ceil(requests_per_second / per_core)
    published = ByteSize(renewal.published)
    millions = [side / 1e6 for side in sides]
    memory = ByteSize(round(max(millions) * MEASURED["hdbscan_1m_rss_gib"] * 2**30))
    seconds = [MEASURED["hdbscan_1m_seconds"] * m ** MEASURED["growth_exponent"] for m in millions]
    needs = Capacity(
        requests_per_second=requests_per_second,
        refresh_days=refresh_days,
        engines=math.ceil(renewal.engine_hours / (24 * refresh_days)),
        refresh_days_as_configured=renewal.wall_hours / 24,
        gpu_hours=renewal.gpu_hours * refreshes,
        storage=ByteSize(renewal.storage),
        serving_cores=cores,
        serving_replicas=math.ceil(cores / _MEASURED_CORES),
        serving_nodes=math.ceil(cores / NODE_CORES),
        node_memory=published,
        node_disk=ByteSize(_VERSIONS * published),
        clustering_hours=sum(seconds) / 3600,
        clustering_memory=memory,
        extraction_cost=renewal.cost * refreshes,
        serving_cost=cores * _MONTH_HOURS * config.extract.prices.cpu_hour,
        breaks_first=[],
    )
    units = renewal.prompts / config.extract.unit_rows
    driver = ByteSize(round(units * _UNIT_BYTES))
    inserts = sum(sides) / MEASURED["streakhc_inserts_per_s"] / 3600
    shares = [
        (memory / (NODE_GIB * 2**30),
         f"HDBSCAN needs {memory.human_readable()} on one node: use StreaKHC "
         f"({inserts:.1f} hours in one process)"),
        (needs.engines / config.extract.max_replicas,
         f"{needs.engines} engines renew all knowledge in {refresh_days:g} days, "
         f"extract.max_replicas is {config.extract.max_replicas}: raise it, renew less often, or "
         "ask once per cluster"),
        (driver / (NODE_GIB * 2**30),
         f"the driver of extract notes {driver.human_readable()} about {units:,.0f} work units: "
         "raise extract.unit_rows"),
        (published / (NODE_GIB * 2**30),
         f"the published vectors take {published.human_readable()} of each serving node's memory: "
         "take larger nodes, or Redis"),
        (3 * needs.serving_replicas / _SERVE_REPLICAS,
         f"one Serve controller manages {3 * needs.serving_replicas} replicas: take the fused "
         "graph, or several clusters behind a load balancer"),
    ]  # fmt: skip
    needs.breaks_first = [text for share, text in sorted(shares, reverse=True) if share > 1]
    return needs
