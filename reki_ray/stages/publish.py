"""Stage publish: augmented vectors of every id, and all that serving needs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from reki_ray.config import KNOWLEDGE_ARMS, RekiConfig
from reki_ray.core.formats import counted
from reki_ray.core.progress import Reporter
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.errors import RekiError, StoreError
from reki_ray.models import artifact as bundles
from reki_ray.models.artifact import Bundle
from reki_ray.models.candidate_scorer import CatalogueInputs
from reki_ray.retrieval.builder import RetrievalBuilder, TowerItems, write_retrieval
from reki_ray.retrieval.files import read_description, reduce_retrieval
from reki_ray.schema import (
    ATTRIBUTES,
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
)
from reki_ray.stages.publish_vectors import augmentation, read_side, write_side
from reki_ray.store.deltas import changes_over, reduce_to_delta
from reki_ray.store.hash_index import write_indexed
from reki_ray.store.manifest import (
    CATALOGUE_FILE,
    KNOWLEDGE_FILE,
    MODEL_FOLDER,
    PROFILES_FILE,
    RERANKER_FOLDER,
    RETRIEVAL_FOLDER,
    Description,
    RerankerDescription,
    retrieval_folders,
)
from reki_ray.store.tables import attributes_of, catalogue_table, knowledge_table, profiles_table
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore, store_of
from reki_ray.training.runs import Run, read_bundle
from reki_ray.training.selection import choose_reranker, choose_run, with_arm


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Stage `publish`: build a version from the best trained run and make it current.

    Raises:
        ConfigError: The configured arm cannot be served.
        DataError: The representations do not cover the ids.
        StoreError: What was built does not open; the served version is unchanged.
    """
    chosen = choose_run(config, workspace)
    history = workspace.read_table(INTERACTIONS)
    opened = publish_version(config, workspace, workspace, chosen, history, reporter)
    compared = publish_compared(config, workspace, workspace, history, reporter)
    reranker = opened.manifest.reranker
    retrieval = read_description(opened.folder / RETRIEVAL_FOLDER)
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
            "reranker": reranker and reranker.name,
            "recall": retrieval.recall,
            "popular_recall": retrieval.popular_recall,
            "compared": compared,
            "bytes": size,
        },
    )


def publish_compared(
    config: RekiConfig,
    workspace: Workspace,
    tables: Workspace,
    history: pa.Table,
    reporter: Reporter,
) -> int | None:
    """Publish the arm of `publish.compare` beside the served one, see `publish_version`.

    Returns:
        Number of the version; None if none is configured or it cannot be published: what is
        served does not depend on it.
    """
    arm = config.publish.compare
    if arm is None:
        return None
    try:
        chosen = choose_run(with_arm(config, arm), workspace)
        opened = publish_version(
            config, workspace, tables, chosen, history, reporter, promote=False
        )
    except (RekiError, OSError) as error:
        reporter.say(f"publish: no version of {arm} to compare with: {error}")
        return None
    return opened.manifest.version


def publish_version(
    config: RekiConfig,
    workspace: Workspace,
    tables: Workspace,
    chosen: Run,
    history: pa.Table,
    reporter: Reporter,
    *,
    promote: bool = True,
) -> StoreVersion:
    """Build a version and make it current.

    A version of a later round becomes a delta over the current one if few rows differ, see
    `changes_over`.

    Args:
        workspace: Its workspace, which holds the store.
        tables: Holds users, items, clusters, knowledge and representations: of the run itself, or
            of a later round over new events.
        history: All interactions, by user, then time; profiles keep the latest.

    Raises:
        DataError: The representations do not cover the ids.
        StoreError: What was built does not open; the served version is unchanged.
    """
    store = store_of(config, workspace)
    builder = VersionBuilder(config, workspace, tables, reporter, chosen, history)
    # Before the store is locked: it takes longest, and promotions wait for the lock.
    try:
        earlier = retrieval_folders(store.layers(store.current()))
    except StoreError:  # nothing is published, or it is damaged
        earlier = []
    builder.learn(earlier)

    def fill(folder: Path) -> Description:
        description = builder.fill(folder)
        if tables is workspace or not promote:
            return description
        return _over_current(store, folder, description, reporter)

    number = store.publish(fill, promote=promote)
    return store.open(number, verify=False)


def _over_current(
    store: VersionStore, folder: Path, description: Description, reporter: Reporter
) -> Description:
    """Make a full version's files a delta over the current version if few rows differ."""
    try:
        base = store.open(verify=False)
    except StoreError as error:  # nothing is published, or it is damaged
        reporter.say(f"publish: writing a full version: {error}")
        return description
    changes = changes_over(folder, description, base)
    earlier = retrieval_folders(base.layers)
    if changes is None or not earlier or not reduce_retrieval(folder / RETRIEVAL_FOLDER, earlier):
        return description
    rows = sum(map(len, changes.values()))
    reporter.say(f"publish: {counted(rows, 'row')} changed, writing a delta over {base.name}")
    return reduce_to_delta(folder, description, base, changes)


# --- what goes into a version ------------------------------------------------------------------


@dataclass
class VersionBuilder:
    """Writes the files of a version.

    Args:
        run: Its workspace, which holds samples and trained runs.
        history: All interactions, by user, then time.
    """

    config: RekiConfig
    run: Workspace
    tables: Workspace
    reporter: Reporter
    chosen: Run
    history: pa.Table

    def __post_init__(self) -> None:
        """Open the model and the catalogue."""
        self._bundle = read_bundle(self.run, self.chosen)
        self._items = self.tables.read_table(ITEMS)

    def learn(self, earlier: Sequence[Path]) -> None:
        """Learn what retrieval needs, or take it from the files of the version before, if any."""
        items = self._items
        ids = items.column(ITEM_ID).to_pylist()
        r = unknown = None
        if self._bundle.uses_knowledge:
            known = read_side(self.tables, self._bundle, "items", items.column(ITEM_ID))
            rows = {name: row for row, name in enumerate(known.ids)}
            r, unknown = known.r[[rows[name] for name in ids]], known.unknown[0]
        attributes = [attributes_of(pairs) for pairs in items.column(ATTRIBUTES).to_pylist()]
        inputs = CatalogueInputs(self._bundle, ids, attributes, r, unknown, prestored="r")
        self._catalogue = TowerItems.of(inputs, ids)
        self._retrieval = RetrievalBuilder(
            self.config,
            self.run,
            self.reporter,
            model=self._bundle.fingerprint,
            seed=self.chosen.seed,
            earlier=earlier,
        ).learn(self._catalogue)

    def fill(self, folder: Path) -> Description:
        """Write all files into a folder, and describe them; after `learn`."""
        users, items = self.tables.read_table(USERS), self._items
        ids: dict[Side, pa.ChunkedArray] = {
            "users": users.column(USER_ID),
            "items": items.column(ITEM_ID),
        }
        profiles = profiles_table(users, self.history, self.config.publish.history)
        write_indexed(folder / PROFILES_FILE, profiles, USER_ID)
        write_indexed(folder / CATALOGUE_FILE, catalogue_table(items), ITEM_ID)
        write_indexed(folder / KNOWLEDGE_FILE, self._knowledge(), ID)
        _copy_model(self.run, self.chosen, folder / MODEL_FOLDER)
        fallback = self._write_vectors(folder, self._bundle, ids)
        write_retrieval(
            folder / RETRIEVAL_FOLDER,
            self._catalogue,
            self._retrieval,
            self.history,
            exact_below=self.config.publish.retrieval.exact_below,
        )
        return Description(
            arm=self._bundle.arm,
            backbone=self._bundle.architecture.backbone,
            seed=self.chosen.seed,
            model_fingerprint=self._bundle.fingerprint,
            dimension=self._bundle.augmented_dim,
            dtype=self.config.publish.dtype,
            prestore=self.config.publish.prestore,
            users=len(users),
            items=len(items),
            fallback=fallback,
            reranker=self._add_reranker(folder / RERANKER_FOLDER, ids),
        )

    def _write_vectors(
        self, folder: Path, bundle: Bundle[Any, Any], ids: dict[Side, pa.ChunkedArray]
    ) -> dict[Side, list[float]]:
        """Write the vectors that a model takes of both sides; returns those of unknown ids."""
        if not bundle.uses_knowledge:
            return {}
        settings, fallback = self.config.publish, {}
        total = sum(len(of_side) for of_side in ids.values())
        with self.reporter.task("publish: vectors", total=total, unit="ids") as task:
            for side, of_side in ids.items():
                known = read_side(self.tables, bundle, side, of_side)
                augment = augmentation(bundle, side, settings.prestore)
                fallback[side] = write_side(
                    folder, side, known, augment, dtype=settings.dtype, task=task
                )
        return fallback

    def _add_reranker(
        self, folder: Path, ids: dict[Side, pa.ChunkedArray]
    ) -> RerankerDescription | None:
        """Copy the reranker and write its vectors, where there is one."""
        chosen = choose_reranker(self.config, self.run, self.chosen.arm)
        if chosen is None:
            return None
        _copy_model(self.run, chosen, folder)
        bundle = bundles.load_reranker(folder)
        # Its HEIN is not the model's: h is its own, while r serves both.
        stores = self.config.publish.prestore == "h"
        return RerankerDescription(
            name=chosen.backbone,
            seed=chosen.seed,
            fingerprint=bundle.fingerprint,
            fallback=self._write_vectors(folder, bundle, ids) if stores else {},
        )

    def _knowledge(self) -> pa.Table:
        """The texts that the served model's vectors come from; empty without an LLM."""
        if self.chosen.arm not in KNOWLEDGE_ARMS:
            assert KNOWLEDGE.schema is not None
            return knowledge_table(KNOWLEDGE.schema.empty_table(), {})
        clusters: dict[Side, dict[str, str]] = {}
        if self.chosen.arm != "reki_i":
            for side in SIDES:
                rows = self.tables.read_table(CLUSTERS[side])
                ids, names = (rows.column(name).to_pylist() for name in (ID, CLUSTER_ID))
                clusters[side] = dict(zip(ids, names, strict=True))
        return knowledge_table(self.tables.read_table(KNOWLEDGE), clusters)


def _copy_model(workspace: Workspace, run: Run, target: Path) -> None:
    target.mkdir()
    for name in (bundles.WEIGHTS, bundles.DESCRIPTION):
        with workspace.guarded("read"):
            source = workspace.path(run.folder, name)
            workspace.filesystem.get_file(source, str(target / name))
