"""`reki publish --arm`: a further version of a run, as an experiment compares several.

It stands beside the version of stage publish and leaves the manifest of the stages alone, so that
`reki run` finds its own work unchanged.
"""

from __future__ import annotations

from reki_ray.config import Arm, RekiConfig
from reki_ray.pipeline import fingerprints, require_done
from reki_ray.progress import Reporter
from reki_ray.store import commands
from reki_ray.store.choosing import choose_run, with_arm
from reki_ray.store.commands import Versions
from reki_ray.store.location import store_of
from reki_ray.store.stage import publish_version
from reki_ray.update import latest_tables
from reki_ray.workspace import Workspace


def publish_variant(
    config: RekiConfig, workspace: Workspace, reporter: Reporter, arm: Arm | None, *, promote: bool
) -> Versions:
    """Publish a trained arm over the same tables as the latest version of the run.

    Args:
        config: A run that is trained.
        workspace: Its folder.
        reporter: Shows progress.
        arm: Which one; None takes that of `publish.arm`.
        promote: Serve it from now on.

    Returns:
        All versions.

    Raises:
        ConfigError: The run is not trained, the arm is none of its arms or cannot be served, the
            workspace is remote, another run holds it, or events wait for `reki update`.
        DataError: A table is missing or damaged.
        StoreError: What was built does not open, or cannot be exported; the old version stays in
            force.
    """
    if arm is not None:
        config = with_arm(config, arm)
    with workspace.lock():
        wanted = fingerprints(config)
        require_done(("train",), wanted, workspace, what="a version", until="train")
        tables, history = latest_tables(workspace, wanted["train"])
        chosen = choose_run(config, workspace)
        opened = publish_version(
            config, workspace, tables, chosen, history, reporter, promote=promote
        )
    found = commands.versions(store_of(config, workspace))
    done = f"arm {chosen.arm} is published as {opened.name}"
    done += " and served now" if promote else "; what is served stays"
    return found.model_copy(update={"done": done})
