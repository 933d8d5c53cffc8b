"""A served graph in a process of its own, which its parent changes and ends.

python -m tests.support.live_driver

Reads a configuration a line, as JSON: the first one is served, each later one updates the running
graph; an empty line asks for the health. Answers each with a line of JSON, {"url"} (the first with
{"metrics"}, the URL of Ray's metrics), {"error"} or {"healthy"}; ends at the end of its input.
"""

from __future__ import annotations

import json
import sys

from deployments import launcher
from reki_ray.config import RekiConfig
from reki_ray.core.imports import load
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.store.versions import store_of


def main() -> None:
    """Serve, update, end."""
    config = RekiConfig.model_validate_json(sys.stdin.readline())
    with launcher.start(config, Workspace(config.workspace)) as url:
        _tell(url=url, metrics=launcher.metrics_urls()[0])
        for line in sys.stdin:
            if not line.strip():
                _tell(healthy=_is_healthy())
                continue
            try:
                _update(RekiConfig.model_validate_json(line))
            except EngineError as error:
                _tell(error=str(error))
            else:
                _tell(url=url)


def _update(config: RekiConfig) -> None:
    build = load(launcher.BUILDERS[config.serve.graph])
    store = store_of(config, Workspace(config.workspace))
    launcher._deploy(build(launcher._graph_args(config, store)), config.serve)


def _is_healthy() -> bool:
    """Whether every deployment has all its replicas."""
    from ray import serve  # after the start has set the environment

    deployments = serve.status().applications[launcher.APP_NAME].deployments.values()
    return all(
        one.status == "HEALTHY" and set(one.replica_states) == {"RUNNING"} for one in deployments
    )


def _tell(**answer: str | bool) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
