"""Stage extract with a faulty engine in a process of its own, which a test may kill."""

from __future__ import annotations

import json
import sys
from typing import Any

from reki_ray.runtime import set_environment


def main() -> None:
    set_environment()
    # After the environment: Ray reads it when it is imported.
    from reki_ray.extraction import stage  # noqa: PLC0415
    from reki_ray.progress import Reporter  # noqa: PLC0415
    from reki_ray.workspace import Workspace  # noqa: PLC0415
    from tests.chaos import faulty  # noqa: PLC0415

    root, fault, extract = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

    def build(section: Any, frame: Any) -> faulty.FaultyEngine:
        return faulty.FaultyEngine(section.engine, section, frame, faulty.Fault(**fault))

    stage.build_engine = build  # type: ignore[attr-defined, assignment]
    workspace = Workspace(root)
    stage.run(faulty.config(root, **extract), workspace, Reporter(workspace, quiet=True))


if __name__ == "__main__":
    main()
