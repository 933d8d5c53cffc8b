"""Runs stage extract on a cluster that grows: `python -m tests.support.growing_cluster FOLDER`.

Ray's fake autoscaler starts and stops its nodes as processes. It ends every Ray that it sees: run
this in a PID namespace of its own. Engines are scripted and ask for a GPU, which no node but those
that the autoscaler starts declares. Prints the numbers of nodes beside the head, as JSON.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from reki_ray.core.ray_cluster import ray_session, set_environment

set_environment()  # before Ray is imported

import ray  # noqa: E402
from ray import cluster_utils  # noqa: E402

from reki_ray.config import ExtractConfig, RayConfig  # noqa: E402
from reki_ray.core.progress import Reporter  # noqa: E402
from reki_ray.core.workspace import Workspace  # noqa: E402
from reki_ray.extraction.engines.scripted import ScriptedBatchEngine  # noqa: E402
from reki_ray.prompts.template import PromptTemplate  # noqa: E402
from reki_ray.stages import extract as extract_stage  # noqa: E402
from tests.support import faulty_engine  # noqa: E402

MOST_NODES: Final = 3
IDLE_SECONDS: Final = 300.0

# Ray 2.60's wheel lacks the example file that its fake autoscaler reads.
_EXAMPLE: Final[Mapping[str, Any]] = {
    "cluster_name": "fake",
    "max_workers": 8,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "file_mounts_sync_continuously": False,
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{
        key: []
        for key in (
            *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
            *("setup_commands", "head_setup_commands", "worker_setup_commands"),
            *("head_start_ray_commands", "worker_start_ray_commands"),
        )
    },
}


class GpuEngine(ScriptedBatchEngine):
    """The scripted engine as one that needs a GPU."""

    def __init__(self, config: Any, extract: ExtractConfig, template: PromptTemplate) -> None:
        super().__init__(config, extract, template)
        self.demand = {"CPU": 0.0, "GPU": 1.0}


def main() -> None:
    """Grow from no node to three and back."""
    workspace = Workspace(sys.argv[1])
    faulty_engine.fill(workspace)
    cluster = _start()
    limits = {"CPU": 2.0 + MOST_NODES, "GPU": float(MOST_NODES)}
    counts: list[int] = []
    stop = threading.Event()
    try:
        with ray_session(RayConfig(address="auto", max_resources=limits)):
            watcher = threading.Thread(target=_watch, args=(counts, stop))
            watcher.start()
            try:
                answers = _extract(workspace)
                deadline = time.monotonic() + IDLE_SECONDS
                while _workers() and time.monotonic() < deadline:
                    time.sleep(1)
            finally:
                stop.set()
                watcher.join()
    finally:
        cluster.shutdown()
    changes = [now for before, now in zip([-1, *counts], counts, strict=False) if now != before]
    sys.stdout.write(f"\n{json.dumps({'nodes': changes, 'answers': answers})}\n")


def _extract(workspace: Workspace) -> int:
    setattr(extract_stage, "build_engine", build_engine)  # noqa: B010  # for this process
    config = faulty_engine.config(
        workspace.root,
        engine={"kind": "scripted", "seconds": 1.0},
        unit_rows=1,
        max_replicas=MOST_NODES,
    )
    return extract_stage.run(config, workspace, Reporter(quiet=True)).rows_out


def build_engine(section: ExtractConfig, template: PromptTemplate) -> GpuEngine:
    """Build the engine of a configuration."""
    return GpuEngine(section.engine, section, template)


def _start() -> Any:
    def read(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("example.yaml") and not Path(path).exists():
            return io.StringIO(yaml.safe_dump(dict(_EXAMPLE)))
        return open(path, *arguments, **options)

    setattr(cluster_utils, "open", read)  # noqa: B010
    resources = {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000}
    cluster = cluster_utils.AutoscalingCluster(
        head_resources={"CPU": 2},
        worker_node_types={
            "gpu": {
                "resources": resources,
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST_NODES,
            }
        },
        autoscaler_v2=True,
        idle_timeout_minutes=0.2,
        max_workers=MOST_NODES,
        upscaling_speed=10,
    )
    cluster.start()
    return cluster


def _workers() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes()) - 1


def _watch(counts: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.5):
        counts.append(_workers())


if __name__ == "__main__":
    main()
