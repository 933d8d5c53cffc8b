"""What `reki versions`, `promote`, `rollback`, `compact` and `export` do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from reki_ray.core.progress import Reporter
from reki_ray.errors import ConfigError, StoreError
from reki_ray.store.manifest import Manifest
from reki_ray.store.version import export_vectors
from reki_ray.store.versions import VersionStore


class VersionEntry(BaseModel):
    """One version.

    Attributes:
        current: Whether it is served.
        base: Version that it lies over; None for a full version.
        layers: Number of layers; 0 if it does not open.
        manifest: What it holds; None if it does not open.
        problem: Why it does not open; empty if it does. Files are not read for this.
        promoted_at: When it was last promoted, seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    current: bool
    base: int | None
    layers: int
    manifest: Manifest | None
    problem: str
    promoted_at: int | None


class Versions(BaseModel):
    """All versions below a root, ascending.

    Attributes:
        current: Version that is served; None if nothing is published.
        problem: Why no version is served; empty if one is.
        done: What the command did; empty if it only looked.
    """

    model_config = ConfigDict(frozen=True)

    root: str
    current: int | None
    versions: list[VersionEntry]
    problem: str = ""
    done: str = ""


class Exported(BaseModel):
    """An export of some vectors, and how many of them were not there before (`written`)."""

    model_config = ConfigDict(frozen=True)

    version: int
    kind: str
    namespace: str
    vectors: int
    written: int


def versions(store: VersionStore, done: str = "") -> Versions:
    """`reki versions`: all versions, also those that do not open, after what a command has `done`.

    Raises:
        StoreError: The history is damaged.
    """
    current, problem = None, ""
    try:
        current = store.current()
    except StoreError as error:
        problem = str(error)
    promoted_at = {promotion.version: promotion.at for promotion in store.history()}
    entries = []
    for number in store.versions():
        layers: list[Manifest] = []
        why = ""
        try:
            layers = store.manifests(number)
        except StoreError as error:
            why = f"{error.what} [{error.where}]"
        manifest = layers[0] if layers else None
        entries.append(
            VersionEntry(
                version=number,
                current=number == current,
                base=manifest.base.version if manifest and manifest.base else None,
                layers=len(layers),
                manifest=manifest,
                problem=why,
                promoted_at=promoted_at.get(number),
            )
        )
    if current is not None and current not in store.versions():
        problem = f"version {current} is current, but missing"
    return Versions(
        root=store.location, current=current, versions=entries, problem=problem, done=done
    )


def promote(store: VersionStore, version: int, *, expected: int | None = None) -> Versions:
    """`reki promote N`."""
    store.promote(version, expected=expected)
    return versions(store, f"version v{version} is served now")


def rollback(store: VersionStore, *, expected: int | None = None) -> Versions:
    """`reki rollback`."""
    return versions(store, f"back to version v{store.rollback(expected=expected)}")


def compact(store: VersionStore, version: int | None = None) -> Versions:
    """`reki compact`: one full version of the current one's layers, or of another's."""
    before = store.current() if version is None else version
    # Only the served version's twin takes its place.
    number = store.compact(before, promote=before == store.current())
    if number == before:
        return versions(store, f"version v{before} is full already")
    return versions(store, f"version v{number} holds all that v{before} holds, in one layer")


def export(store: VersionStore, version: int | None, reporter: Reporter) -> Exported:
    """`reki export`: load a version's vectors to where replicas look them up.

    An interrupted export starts over; a complete one is left alone.

    Raises:
        ConfigError: Replicas look vectors up in the version's own files, or a package is missing.
        StoreError: The version is missing or damaged, the server is unreachable, or it holds
            another store's version of this number.
    """
    settings = store.vectors
    if settings.kind == "arrow":
        raise ConfigError(
            "there is nowhere to export to: vectors are looked up in the version's own files",
            where="store.vectors.kind",
            todo="Set it to lmdb or redis, and store.vectors.url.",
        )
    opened = store.open(version)  # with its checksums: what is damaged is not spread
    number = opened.manifest.version
    total = sum(len(side) for side in (opened.users, opened.items) if side is not None)
    with reporter.task(f"export: v{number}", total=total, unit="vectors") as task:
        vectors = export_vectors(opened, settings, task.advance)
    return Exported(
        version=number,
        kind=settings.kind,
        namespace=settings.namespace,
        vectors=vectors,
        written=task.done,
    )
