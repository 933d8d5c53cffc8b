"""Lists the nodes of this machine's cluster; `reki launch` runs it on the head.

    python -m reki_ray.cli.cluster_nodes COUNT SECONDS

waits up to SECONDS for COUNT nodes that are alive, as `ray.nodes()` has them: a process that runs
is not yet a node of the cluster.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Final

from reki_ray.core.ray_cluster import set_environment

MARK: Final = "reki-nodes: "
"""Begins the line of the result, among whatever SSH and login shells print."""


def main() -> None:
    """Wait for nodes and print them as JSON."""
    count, seconds = int(sys.argv[1]), float(sys.argv[2])
    set_environment()
    import ray  # after the environment

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    deadline = time.monotonic() + seconds
    while len(nodes := _alive(ray.nodes())) < count and time.monotonic() < deadline:
        time.sleep(1)
    sys.stdout.write(f"\n{MARK}{json.dumps(nodes)}\n")


def _alive(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "address": node["NodeManagerAddress"],
            "cpus": node["Resources"].get("CPU", 0.0),
            "gpus": node["Resources"].get("GPU", 0.0),
            "head": "node:__internal_head__" in node["Resources"],
        }
        for node in nodes
        if node["Alive"]
    ]


if __name__ == "__main__":
    main()
