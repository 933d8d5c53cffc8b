"""Files of the online side of a run.

<workspace>/online/events/<writer>-<number>.jsonl       user events
<workspace>/online/exposures/<writer>-<number>.jsonl    items shown to users
<workspace>/online/refresh/                             state of the refresher
<workspace>/online/key                                  key of the hashes of user ids

Where the workspace is a URL, these are in a folder of each node, and what the nodes wrote is
shipped between them, see `shipping`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from reki_ray.core.storage import Storage, is_url

ONLINE: Final = "online"


class OnlineFolders:
    """Folders and files below `<workspace>/online` (`root`).

    Attributes:
        storage: What all nodes share where `root` is a folder of this node; None where `root`
            itself is on storage that all nodes share.
    """

    def __init__(self, root: Path | str, storage: Storage | None = None) -> None:
        self.root = Path(root)
        self.storage = storage
        self.events = self.root / "events"
        self.exposures = self.root / "exposures"
        self.refresh = self.root / "refresh"
        self.key = self.root / "key"

    @classmethod
    def beside(cls, publish_root: Path | str) -> OnlineFolders:
        """Folders of the workspace with versions in `publish_root`, a folder or a URL."""
        if isinstance(publish_root, str) and is_url(publish_root):
            return cls.of(publish_root.rstrip("/").rpartition("/")[0])
        return cls(Path(publish_root).parent / ONLINE)

    @classmethod
    def of(cls, workspace: str) -> OnlineFolders:
        """Folders of a workspace, a folder or a URL."""
        if not is_url(workspace):
            return cls(Path(workspace) / ONLINE)
        url = f"{workspace.rstrip('/')}/{ONLINE}"
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        return cls(node_folder() / ONLINE / digest, Storage(url))


def node_folder() -> Path:
    """Folder for what a node must not lose: the variable REKI_STATE, or ~/.local/state/reki-ray."""
    folder = os.environ.get("REKI_STATE")
    return Path(folder).expanduser() if folder else Path.home() / ".local/state/reki-ray"
