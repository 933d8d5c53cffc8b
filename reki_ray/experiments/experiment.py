"""Experiments: versions for shares of the users, assigned by a stable hash.

    <publish_root>/EXPERIMENT.json             the running experiment
    <publish_root>/EXPERIMENT-<name>.json      an ended one

The hash of salt and user id maps a user to one of 1,000,000 slots, and a variant owns ranges of
slots. When shares change, growing variants take slots of shrinking ones only, so that as few users
as possible change their variant.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reki_ray.errors import ConfigError, EngineError, StoreError
from reki_ray.experiments.experiment_files import ExperimentFiles, open_files
from reki_ray.store.versions import VersionStore

EXPERIMENT: Final = "EXPERIMENT.json"
SLOTS: Final = 1_000_000

Ranges = tuple[tuple[int, int], ...]
"""Ranges [from, to) of slots, ascending."""

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_TOLERANCE: Final = 1e-6
_FREE: Final = -1


class Variant(BaseModel):
    """A version for a share of the users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME, description="Name in the logs, as base or reki.")
    version: int = Field(ge=1, description="Published version that its users get.")
    share: float = Field(ge=0, le=1, description="Share of the users.")
    slots: Ranges = Field((), description="Ranges [from, to) of slots; empty: allotted by share.")


class Experiment(BaseModel):
    """A division of the users, with distinct names and shares that sum to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME, description="Name of the experiment.")
    salt: str = Field(min_length=1, max_length=128, description="Changes the division of users.")
    variants: tuple[Variant, ...] = Field(
        min_length=1, description="The first is the base of comparison."
    )
    changed_at: int = Field(
        0, ge=0, description="Time of the last change, seconds since the epoch."
    )
    ended_at: int | None = Field(None, description="When it ended; null while it runs.")

    @model_validator(mode="after")
    def _divides_all_users(self) -> Experiment:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"variants need distinct names, but {', '.join(twice)} is repeated")
        total = sum(variant.share for variant in self.variants)
        if abs(total - 1) > _TOLERANCE:
            raise ValueError(f"the shares must sum to 1, not {total:g}")
        if any(variant.slots for variant in self.variants):
            ranges = sorted(slots for variant in self.variants for slots in variant.slots)
            ends = [0, *(end for _, end in ranges)]
            begins = [*(begin for begin, _ in ranges), SLOTS]
            if ends != begins:
                raise ValueError(f"the slots must divide 0 to {SLOTS} without gaps")
        else:
            sizes = rounded({variant.name: variant.share for variant in self.variants})
            allotted = allot({}, sizes)
            variants = [v.model_copy(update={"slots": allotted[v.name]}) for v in self.variants]
            object.__setattr__(self, "variants", tuple(variants))  # frozen, but not yet shared
        return self

    def assign(self, user_id: str) -> Variant:
        """Variant of a user, the same in every process."""
        slot = slot_of(self.salt, user_id)
        for variant in self.variants:
            for begin, end in variant.slots:
                if begin <= slot < end:
                    return variant
        raise AssertionError(f"no variant owns slot {slot}")  # excluded by the validator


def slot_of(salt: str, user_id: str) -> int:
    """Slot of a user: uniform, and independent between salts."""
    key = hashlib.blake2b(salt.encode("utf-8", "surrogatepass")).digest()
    user = user_id.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(user, digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") * SLOTS >> 64


def rounded(shares: Mapping[str, float]) -> dict[str, int]:
    """Convert shares to numbers of slots that sum to `SLOTS` (largest remainder)."""
    total = sum(shares.values())
    exact = {name: share / total * SLOTS for name, share in shares.items()}
    sizes = {name: int(amount) for name, amount in exact.items()}
    left = SLOTS - sum(sizes.values())
    by_remainder = sorted(exact, key=lambda name: sizes[name] - exact[name])
    for name in by_remainder[:left]:
        sizes[name] += 1
    return sizes


def allot(owned: Mapping[str, Ranges], sizes: Mapping[str, int]) -> dict[str, Ranges]:
    """Give each name its number of slots.

    Args:
        owned: Current slots of each name; all others are free.
        sizes: Slots per name, `SLOTS` in total; other names of `owned` lose theirs.

    Returns:
        Slots of each name. One that does not shrink keeps all of its slots, and one that shrinks
        keeps its lowest.
    """
    names = list(sizes)
    owners = np.full(SLOTS, _FREE)
    for number, (name, size) in enumerate(sizes.items()):
        for begin, end in owned.get(name, ()):
            owners[begin:end] = number
        owners[np.flatnonzero(owners == number)[size:]] = _FREE
    for number, size in enumerate(sizes.values()):
        missing = size - np.count_nonzero(owners == number)
        owners[np.flatnonzero(owners == _FREE)[:missing]] = number
    starts = np.flatnonzero(np.diff(owners, prepend=_FREE))
    ends = [*starts[1:].tolist(), SLOTS]
    allotted: dict[str, Ranges] = dict.fromkeys(names, ())
    for begin, end, owner in zip(starts.tolist(), ends, owners[starts], strict=True):
        allotted[names[owner]] += ((begin, end),)
    return allotted


def load_experiment(root: Path | str, name: str | None = None) -> Experiment | None:
    """Load the running experiment, or a running or ended one by name; None if there is none."""
    files = open_files(root)
    running = _read(files, EXPERIMENT)
    if name is None or (running is not None and running.name == name):
        return running
    return _read(files, _ended(root, name))


def start_experiment(
    root: Path | str,
    name: str,
    variants: Mapping[str, tuple[int, float]],
    *,
    salt: str | None = None,
    kept_versions: int | None = None,
) -> Experiment:
    """Start an experiment, or change the shares or versions of the running one.

    An experiment keeps its salt under its name, even after it has ended, and its users stay in
    their variants as far as the shares allow.

    Args:
        variants: Version and share of each variant by name; the first is the base.
        salt: Divides users; None keeps the experiment's, or draws a new one.
        kept_versions: Versions that a replica keeps open, `serve.kept_versions`; None skips the
            check that the experiment needs no more.

    Raises:
        ConfigError: A version does not exist, there are more than replicas keep, names or shares
            are invalid, another experiment is running, or the salt would change.
        StoreError: A file is damaged.
    """
    files = open_files(root)
    existing = VersionStore(root).versions()
    missing = sorted({version for version, _ in variants.values()} - set(existing))
    if missing:
        raise ConfigError(
            f"there is no version {', '.join(map(str, missing))}",
            where=str(root),
            todo=f"Choose from {existing}; `reki versions` lists them.",
        )
    if kept_versions is not None:
        require_room(root, [version for version, _ in variants.values()], kept_versions)
    with files.lock():
        running = _read(files, EXPERIMENT)
        if running is not None and running.name != name:
            raise ConfigError(
                f"experiment {running.name} is running",
                where=f"{root}/{EXPERIMENT}",
                todo="Stop it first: a user can be in one experiment only.",
            )
        earlier = running or _read(files, _ended(root, name))
        if earlier is not None and salt not in (None, earlier.salt):
            raise ConfigError(
                f"experiment {name} has another salt: all its users would change variants",
                where=str(root),
                todo="Omit the salt, or use a new name.",
            )
        salt = earlier.salt if earlier else salt or secrets.token_hex(16)
        started = _divided(root, name, salt, variants, earlier)
        _write(files, EXPERIMENT, started)
    return started


def require_room(root: Path | str, versions: Collection[int], kept: int) -> None:
    """Reject an experiment of more versions than the replicas keep open, with the promoted one.

    Most requests would wait for a version to be opened.

    Raises:
        ConfigError: There are more.
        StoreError: None is promoted.
    """
    numbers = sorted({VersionStore(root).current(), *versions})
    if len(numbers) > kept:
        raise ConfigError(
            f"the experiment and the promoted version need versions "
            f"{', '.join(map(str, numbers))} open at once, but replicas keep {kept}",
            where="serve.kept_versions",
            todo=f"Set it to {len(numbers)} at least and restart serving, or use fewer versions: "
            "`reki experiment`.",
        )


def stop_experiment(root: Path | str) -> Experiment:
    """End the running experiment: all users get the promoted version again.

    Raises:
        ConfigError: No experiment is running.
        StoreError: The file is damaged.
    """
    files = open_files(root)
    if _read(files, EXPERIMENT) is not None:
        with files.lock():
            running = _read(files, EXPERIMENT)
            if running is not None:
                ended = running.model_copy(update={"ended_at": int(time.time())})
                _write(files, _ended(root, ended.name), ended)
                files.remove(EXPERIMENT)
                return ended
    raise ConfigError(
        "no experiment is running",
        where=f"{root}/{EXPERIMENT}",
        todo="Start an experiment first.",
    )


def _divided(
    root: Path | str,
    name: str,
    salt: str,
    variants: Mapping[str, tuple[int, float]],
    earlier: Experiment | None,
) -> Experiment:
    rows = [
        {"name": key, "version": version, "share": share}
        for key, (version, share) in variants.items()
    ]
    content = {"name": name, "salt": salt, "variants": rows, "changed_at": int(time.time())}
    try:
        fresh = Experiment.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise ConfigError(
            f"the experiment is invalid: {problems}",
            where=f"{root}/{EXPERIMENT}",
            todo="Correct its name, its variants and their shares.",
        ) from error
    if earlier is None:
        return fresh
    sizes = rounded({variant.name: variant.share for variant in fresh.variants})
    allotted = allot({variant.name: variant.slots for variant in earlier.variants}, sizes)
    kept = [
        variant.model_copy(update={"slots": allotted[variant.name]}) for variant in fresh.variants
    ]
    return fresh.model_copy(update={"variants": tuple(kept)})


def _read(files: ExperimentFiles, name: str) -> Experiment | None:
    try:
        return Experiment.model_validate_json(files.read(name))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, EngineError) as error:
        raise StoreError(
            f"the experiment cannot be read: {error}",
            where=f"{files.root}/{name}",
            todo="Restore the file from a copy, or delete it to end the experiment.",
        ) from error


def _ended(root: Path | str, name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"{name!r} is not a valid name of an experiment",
            where=str(root),
            todo="Use letters, digits, dots, hyphens and underscores, 64 at most.",
        )
    return f"EXPERIMENT-{name}.json"


def _write(files: ExperimentFiles, name: str, experiment: Experiment) -> None:
    files.write(name, (experiment.model_dump_json(indent=2) + "\n").encode())
