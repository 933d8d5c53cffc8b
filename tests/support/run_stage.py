"""Stage extract with a faulty_engine engine in a process of its own, which a test may kill."""

from __future__ import annotations

import json
import sys
from typing import Any

from reki_ray.core.ray_cluster import set_environment


def main() -> None:
    set_environment()
    # After the environment: Ray reads it when it is imported.
    from reki_ray.core.progress import Reporter
    from reki_ray.core.workspace import Workspace
    from reki_ray.stages import extract as extract_stage
    from tests.support import faulty_engine

    root, fault, extract = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

    def build(section: Any, template: Any) -> faulty_engine.FaultyEngine:
        return faulty_engine.FaultyEngine(
            section.engine, section, template, faulty_engine.Fault(**fault)
        )

    extract_stage.build_engine = build  # type: ignore[attr-defined, assignment]
    workspace = Workspace(root)
    extract_stage.run(
        faulty_engine.config(root, **extract), workspace, Reporter(workspace, quiet=True)
    )


if __name__ == "__main__":
    main()
