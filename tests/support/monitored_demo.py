"""A small service with an extraction beside it, on a Ray of its own, to be scraped.

python -m tests.support.monitored_demo CONFIGURATION.json

Writes a line of JSON with the URL of the service and the path of Ray's service discovery file, then
asks prompts until its input ends.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

from deployments import launcher
from reki_ray import extract_knowledge
from reki_ray.config import RekiConfig
from reki_ray.core.workspace import Workspace

POISON = "poison"
"""Films of this title become dead letters."""
UNIT = 4


def main() -> None:
    config = RekiConfig.model_validate_json(Path(sys.argv[1]).read_text())
    with launcher.start(config, Workspace(config.workspace)) as url:
        import ray  # after the start has set the environment

        session: Any = ray._private.worker._global_node
        targets = f"{session.get_session_dir_path()}/prom_metrics_service_discovery.json"
        sys.stdout.write(json.dumps({"url": url, "targets": targets}) + "\n")
        sys.stdout.flush()
        stop = threading.Event()
        worker = threading.Thread(target=_extract, args=(Path(config.workspace), stop))
        worker.start()
        sys.stdin.read()
        stop.set()
        worker.join()


def _extract(root: Path, stop: threading.Event) -> None:
    engine = {"kind": "scripted", "seconds": 0.5, "fail_containing": POISON}
    settings = {"engine": engine, "unit_rows": UNIT, "max_dead_share": 1.0}
    for number in range(1000):
        if stop.is_set():
            return
        titles = [POISON, *(f"Film {number} of {name}" for name in ("war", "rain", "peace") * 9)]
        films = pa.table({"id": [str(row) for row in range(len(titles))], "title": titles})
        extract_knowledge(films, engine=settings, folder=root / "extract")


if __name__ == "__main__":
    main()
