"""Where the versions of a run lie."""

from __future__ import annotations

from typing import Final

from reki_ray.config import RekiConfig
from reki_ray.store.versions import VersionStore
from reki_ray.workspace import Workspace

STORE_FOLDER: Final = "publish"
"""Folder of the versions, below a workspace."""


def store_of(config: RekiConfig, workspace: Workspace) -> VersionStore:
    """The versions of a run.

    Args:
        config: The run; its `store.vectors` says where replicas look vectors up.
        workspace: Its workspace, on the local disk.

    Raises:
        ConfigError: The workspace is remote.
    """
    root = workspace.local_path(STORE_FOLDER)
    return VersionStore(root, config.store.vectors.resolved())
