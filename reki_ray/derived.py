"""Workspaces inside another: runs of their own that share with it what was paid for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from reki_ray import atomic
from reki_ray.workspace import Workspace

_SHARED: Final = ("encode/ledger", "extract/ledger", "extract/imported")


def share_ledgers(base: Workspace, derived: Workspace) -> None:
    """Let a workspace use the ledgers and the imports of another.

    On a local disk alone; elsewhere the derived workspace has its own.

    Args:
        base: Holds the ledgers.
        derived: Gets links to them.
    """
    if not base.is_local:
        return
    for folder in _SHARED:
        shared, own = Path(base.path(folder)), Path(derived.path(folder))
        atomic.make_folder(shared)
        atomic.make_folder(own.parent)
        if not own.exists():
            own.symlink_to(os.path.relpath(shared, own.parent), target_is_directory=True)
