"""Stage publish: augmented vectors of every id, and all that serving needs beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.config import KNOWLEDGE_ARMS, RekiConfig
from reki_ray.errors import DataError
from reki_ray.models import bundle as bundles
from reki_ray.models.bundle import ModelBundle
from reki_ray.pipeline import StageResult
from reki_ray.progress import Reporter, Task
from reki_ray.schema import (
    CLUSTER_ID,
    CLUSTERS,
    ID,
    INTERACTIONS,
    ITEM_ID,
    ITEMS,
    KNOWLEDGE,
    SIDES,
    USER_ID,
    USERS,
    Side,
    Table,
)
from reki_ray.store.choosing import TrainedRun, choose_run
from reki_ray.store.content_tables import catalogue_table, knowledge_table, profiles_table
from reki_ray.store.index import write_indexed
from reki_ray.store.location import store_of
from reki_ray.store.vectors import FALLBACK, write_vectors
from reki_ray.store.versions import (
    CATALOGUE_FILE,
    KNOWLEDGE_FILE,
    MODEL_FOLDER,
    PROFILES_FILE,
    VECTOR_FILES,
    Description,
    StoreVersion,
)
from reki_ray.vectors import normalise, read_factor_vectors
from reki_ray.workspace import Workspace

Vectors = npt.NDArray[np.float32]

_ROWS_A_STEP = 65_536


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Stage `publish`: build a version from the best trained run and make it current.

    Raises:
        ConfigError: The configured arm cannot be served, or the workspace is remote.
        DataError: The representations do not cover the ids.
        StoreError: What was built does not open; the old version stays in force.
    """
    chosen = choose_run(config, workspace)
    history = workspace.read_table(INTERACTIONS)
    opened = publish_version(config, workspace, workspace, chosen, history, reporter)
    total = len(opened.profiles) + len(opened.catalogue)
    size = sum(path.stat().st_size for path in opened.folder.rglob("*") if path.is_file())
    return StageResult(
        rows_in=total,
        rows_out=total,
        details={
            "version": opened.manifest.version,
            "arm": chosen.arm,
            "seed": chosen.seed,
            "users": len(opened.profiles),
            "items": len(opened.catalogue),
            "dimension": opened.manifest.dimension,
            "bytes": size,
        },
    )


def publish_version(
    config: RekiConfig,
    workspace: Workspace,
    tables: Workspace,
    chosen: TrainedRun,
    history: pa.Table,
    reporter: Reporter,
    *,
    promote: bool = True,
) -> StoreVersion:
    """Build a version and make it current.

    Args:
        config: The run.
        workspace: Its workspace, which holds the store.
        tables: Holds users, items, clusters, knowledge and representations: of the run itself, or
            of a later round over new events.
        chosen: Trained run to serve.
        history: All interactions, by user, then time; profiles keep the latest.
        reporter: Shows progress.
        promote: Make it current.

    Raises:
        ConfigError: The workspace is remote.
        DataError: The representations do not cover the ids.
        StoreError: What was built does not open; the old version stays in force.
    """
    store = store_of(config, workspace)
    fill = VersionBuilder(config, tables, reporter, chosen, history).fill
    number = store.publish(fill, promote=promote)
    return store.open(number, verify=False)


# --- what goes into a version ------------------------------------------------------------------


class VersionBuilder:
    """Writes the files of a version.

    Args:
        config: The run.
        workspace: Holds the tables.
        reporter: Shows progress.
        chosen: Trained run to serve.
        history: All interactions, by user, then time.
    """

    def __init__(
        self,
        config: RekiConfig,
        workspace: Workspace,
        reporter: Reporter,
        chosen: TrainedRun,
        history: pa.Table,
    ) -> None:
        self._config = config
        self._workspace = workspace
        self._reporter = reporter
        self._chosen = chosen
        self._history = history
        self._bundle = bundles.load(chosen.folder)

    def fill(self, folder: Path) -> Description:
        """Write all files into a folder, and describe them."""
        users = self._workspace.read_table(USERS)
        items = self._workspace.read_table(ITEMS)
        profiles = profiles_table(users, self._history, self._config.publish.history)
        write_indexed(folder / PROFILES_FILE, profiles, USER_ID)
        write_indexed(folder / CATALOGUE_FILE, catalogue_table(items), ITEM_ID)
        write_indexed(folder / KNOWLEDGE_FILE, self._knowledge(), ID)
        self._copy_model(folder / MODEL_FOLDER)
        fallback: dict[Side, list[float]] = {}
        if self._bundle.uses_knowledge:
            total = len(users) + len(items)
            with self._reporter.task("publish: vectors", total=total, unit="ids") as task:
                fallback = {
                    "users": self._write_side("users", users.column(USER_ID), folder, task),
                    "items": self._write_side("items", items.column(ITEM_ID), folder, task),
                }
        return Description(
            arm=self._bundle.arm,
            backbone=self._bundle.architecture.backbone,
            seed=self._chosen.seed,
            model_fingerprint=self._bundle.fingerprint,
            dimension=self._bundle.augmented_dim,
            dtype=self._config.publish.dtype,
            prestore=self._config.publish.prestore,
            users=len(users),
            items=len(items),
            fallback=fallback,
        )

    def _copy_model(self, target: Path) -> None:
        target.mkdir()
        for name in (bundles.WEIGHTS, bundles.DESCRIPTION):
            shutil.copyfile(self._chosen.folder / name, target / name)

    def _knowledge(self) -> pa.Table:
        """The texts that the served model's vectors come from; empty without an LLM."""
        if self._chosen.arm not in KNOWLEDGE_ARMS:
            assert KNOWLEDGE.schema is not None
            return knowledge_table(KNOWLEDGE.schema.empty_table(), {})
        clusters: dict[Side, dict[str, str]] = {}
        if self._chosen.arm != "reki_i":
            for side in SIDES:
                rows = self._workspace.read_table(CLUSTERS[side])
                ids, names = (rows.column(name).to_pylist() for name in (ID, CLUSTER_ID))
                clusters[side] = dict(zip(ids, names, strict=True))
        return knowledge_table(self._workspace.read_table(KNOWLEDGE), clusters)

    def _write_side(
        self, side: Side, expected: pa.ChunkedArray, folder: Path, task: Task
    ) -> list[float]:
        """Write one side's vectors, h or r; returns that of an id that nothing is known of."""
        augment = self._bundle.augment_users if side == "users" else self._bundle.augment_items
        ids, r, sources = self._representations(side, expected)
        known = np.array([source != FALLBACK for source in sources], dtype=bool)
        unknown = mean_direction(r[known] if known.any() else r)
        if self._config.publish.prestore == "r":
            vectors, fallback = r, unknown
            task.advance(len(r))
        else:
            vectors = _augment(augment, r, self._bundle.augmented_dim, task)
            fallback = augment(unknown)
        path, dtype = folder / VECTOR_FILES[side], self._config.publish.dtype
        write_vectors(path, ids, vectors, sources, dtype=dtype)
        return [float(x) for x in fallback[0]]

    def _representations(
        self, side: Side, expected: pa.ChunkedArray
    ) -> tuple[list[str], Vectors, list[str]]:
        path = _representation_table(self._bundle, side)
        if not path:  # the arm knows nothing of this side: the zero vector, as in training
            ids = expected.to_pylist()
            zeros = np.zeros((len(ids), self._bundle.architecture.width(side)), np.float32)
            return ids, zeros, [FALLBACK] * len(ids)
        ids, factors, r, sources = read_factor_vectors(
            self._workspace.read_table(Table(path, None))
        )
        if len(ids) != len(expected) or set(ids) != set(expected.to_pylist()):
            raise DataError(
                f"{len(ids)} representations do not cover the {len(expected)} {side} once each",
                where=self._workspace.path(path),
                todo="Run `reki run --until encode --force encode`.",
            )
        trained = self._bundle.architecture.factors(side)
        if factors != trained:
            raise DataError(
                f"representations of {side} are of the factors {', '.join(factors)}, the model "
                f"was trained with {', '.join(trained)}",
                where=self._workspace.path(path),
                todo="Run `reki run --until train --force encode`.",
            )
        return ids, r, sources


def mean_direction(r: Vectors) -> Vectors:
    """Mean of representations (N, d) with length 1, shape (1, d); zero where N is 0."""
    mean = r.mean(axis=0, keepdims=True) if len(r) else np.zeros((1, r.shape[1]), np.float32)
    return normalise(mean)


def _representation_table(bundle: ModelBundle, side: Side) -> str:
    origin = bundle.origin
    return origin.user_representations if side == "users" else origin.item_representations


def _augment(
    augment: Callable[[Vectors], Vectors], r: Vectors, dimension: int, task: Task
) -> Vectors:
    h = np.empty((len(r), dimension), dtype=np.float32)
    for start in range(0, len(r), _ROWS_A_STEP):
        part = r[start : start + _ROWS_A_STEP].copy()  # torch wants writable memory, not Arrow's
        h[start : start + len(part)] = augment(part)
        task.advance(len(part))
    return h
