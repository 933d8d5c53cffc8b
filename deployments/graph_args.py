"""Arguments of the graph, as `build_app` takes them and as every replica gets them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from pydantic import Field

from reki_ray.config import AdapterSettings, Arm, DataConfig, EventRule, RefreshConfig
from reki_ray.config.base import Section
from reki_ray.config.edge import EdgeSettings, is_loopback
from reki_ray.config.serve import GraphSettings, VersionSettings
from reki_ray.core.storage import is_url
from reki_ray.errors import StoreError
from reki_ray.store.versions import VersionStore

FALL_BACKS: Final = 2
"""Older versions that a starting replica tries if the promoted one does not open."""


class StoreAccess(VersionSettings):
    """Where replicas find versions, and which of them they open."""

    publish_root: str = Field(description="Folder or URL of the published versions.")
    vectors: AdapterSettings = Field(
        AdapterSettings(), description="Where vectors are looked up, as `store.vectors` of a run."
    )
    compare: Arm | None = Field(
        None,
        description="Arm whose newest version is kept open beside the served one, so that requests "
        "may name it, as `publish.compare` of a run. Null: none.",
    )
    poll_seconds: float = Field(0.5, gt=0, description="Time between two polls of CURRENT.")

    def store(self) -> VersionStore:
        """Return the version store."""
        return VersionStore(self.publish_root, self.vectors)

    def wanted(self) -> int:
        """Return the number of the version to serve.

        Raises:
            StoreError: Nothing is published, or the pointer is damaged.
        """
        return self.store().current() if self.version is None else self.version

    def wanted_first(self) -> list[int]:
        """Return the numbers to try at start: the wanted one, then the latest before it."""
        number = self.wanted()
        if self.version is not None:
            return [number]
        older = [other for other in self.store().versions() if other < number]
        return [number, *older[: -FALL_BACKS - 1 : -1]]

    def compared(self, served: int) -> int | None:
        """Return the newest version of the arm to compare the served version with, if any.

        If the served version is of that arm itself, return the newest one of another arm.

        Raises:
            StoreError: The served version is missing or damaged.
        """
        if self.compare is None:
            return None
        same = _arm(self.publish_root, served) == self.compare
        for number in reversed(self.store().versions()):
            try:
                if (_arm(self.publish_root, number) == self.compare) != same:
                    return number
            except StoreError:  # skip damaged versions
                continue
        return None

    def arm(self, version: int) -> str:
        """Return the arm of a version's model; raises StoreError as `compared`."""
        return self.store().manifest(version).arm


@lru_cache(maxsize=1024)
def _arm(root: str, version: int) -> str:
    return VersionStore(root).manifest(version).arm  # immutable, and polled often


class OnlineArgs(Section):
    """Which events are interactions. Logs are in `online`, next to the published versions."""

    rules: dict[str, EventRule] = Field(
        RefreshConfig().events, description="As `refresh.events` of the run."
    )
    data: DataConfig | None = Field(
        None, description="Section `data` of the run; null takes every event unchanged."
    )
    history: int = Field(200, ge=1, description="Longest history including recent interactions.")


class GraphArgs(GraphSettings, StoreAccess):
    """Arguments of the graph."""

    edge: EdgeSettings = Field(EdgeSettings(), description="Access, as `serve.edge` of a run.")
    online: OnlineArgs | None = Field(
        OnlineArgs(), description="Events and experiments; null takes no events."
    )

    def resolved(self) -> Self:
        """Return arguments for replicas, which have another working directory."""
        root = self.publish_root
        if not is_url(root):
            root = str(Path(root).resolve())
        return self.model_copy(update={"publish_root": root, "vectors": self.vectors.resolved()})

    def listening_at(self, host: str) -> Self:
        """Return the arguments for a service that in fact listens at `host`.

        Raises:
            ValidationError: Other machines reach `host`, but callers need no token.
        """
        if not self.edge.loopback or is_loopback(host):
            return self
        return self.model_copy(update={"edge": self.edge.at(host)})
