"""Files of the online side of a run.

<workspace>/online/events/<writer>-<number>.jsonl       user events
<workspace>/online/exposures/<writer>-<number>.jsonl    items shown to users
<workspace>/online/refresh/                             state of the refresher
<workspace>/online/key                                  key of the hashes of user ids
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ONLINE: Final = "online"


class OnlineFolders:
    """Folders and files below `<workspace>/online` (`root`), on storage that all nodes share."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.events = self.root / "events"
        self.exposures = self.root / "exposures"
        self.refresh = self.root / "refresh"
        self.key = self.root / "key"

    @classmethod
    def beside(cls, publish_root: Path | str) -> OnlineFolders:
        """Folders of the workspace with versions in `publish_root`."""
        return cls(Path(publish_root).parent / ONLINE)
