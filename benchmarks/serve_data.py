"""Stores of the serve benchmark: two small versions of the same data, and many vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import synthetic
from reki_ray import schema
from reki_ray.config import Arm, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.vectors import normalise, vectors_table
from reki_ray.core.workspace import Workspace

USERS, ITEMS, EVENTS, SAMPLES, DIMENSION = 2_000, 5_000, 30, 20_000, 384
VECTORS_FILE: Final = "users.arrow"
VECTOR_LENGTH = 32
_STEP = 1_000_000
_ARMS: Final[dict[str, Arm]] = {"knowledge": "reki_i", "base": "fair_base"}
_SIDES: Final[tuple[tuple[schema.Side, schema.Table, str], ...]] = (
    ("users", schema.USERS, schema.USER_ID),
    ("items", schema.ITEMS, schema.ITEM_ID),
)


def config(folder: Path) -> RekiConfig:
    """The configuration of a workspace of the benchmark."""
    return RekiConfig.model_validate(
        {
            "name": "bench-serve",
            "workspace": str(folder),
            "data": {"source": {"kind": "movielens_100k"}},  # never read: tables are filled in
            "extract": {"mode": "individual"},
            "train": {"arms": ["fair_base", "reki_i"], "seeds": [0]},
            "publish": {"history": EVENTS},
        }
    )


def fill(folder: str) -> dict[str, Any]:
    """Publish the same users and items with knowledge and without, below `folder`."""
    from reki_ray.training.arms import read_representations  # torch

    published = {}
    for name, arm in _ARMS.items():
        root = Path(folder) / name
        workspace = Workspace(root)
        synthetic.fill(workspace, USERS, ITEMS, EVENTS)
        random = np.random.default_rng(0)
        for side, table, key in _SIDES:
            ids = workspace.read_table(table)[key].to_pylist()
            r = normalise(random.normal(size=(len(ids), DIMENSION)).astype(np.float32))
            rows = vectors_table(ids, r, ["individual"] * len(ids))
            workspace.write_table(schema.REPRESENTATIONS[side], rows)
        assert schema.KNOWLEDGE.schema is not None
        workspace.write_table(schema.KNOWLEDGE, schema.KNOWLEDGE.schema.empty_table())
        published[name] = _publish(root, workspace, arm, read_representations)
    return published


def fill_vectors(folder: str, count: str) -> dict[str, Any]:
    """Write many vectors as a version's file."""
    from reki_ray.store.vectors import write_vectors

    rows = int(count)
    random = np.random.default_rng(0)
    vectors = np.empty((rows, VECTOR_LENGTH), dtype=np.float32)
    for start in range(0, rows, _STEP):
        part = vectors[start : start + _STEP]
        random.standard_normal(out=part, dtype=np.float32)
    ids = [f"u{number:09d}" for number in range(rows)]
    write_vectors(Path(folder) / VECTORS_FILE, ids, vectors, ["individual"] * rows)
    return {"rows": rows, "bytes": (Path(folder) / VECTORS_FILE).stat().st_size}


def knowledge_root(folder: str | Path) -> Path:
    """Publication folder of the version with knowledge."""
    return Path(folder) / "knowledge" / "publish"


def base_root(folder: str | Path) -> Path:
    """Publication folder of the version without."""
    return Path(folder) / "base" / "publish"


def _publish(root: Path, workspace: Workspace, arm: Arm, read: Any) -> dict[str, Any]:
    import torch  # seconds

    from reki_ray.models import artifact as bundles
    from reki_ray.stages.publish import publish_version
    from reki_ray.training.dataset import read_dataset
    from reki_ray.training.runs import Run
    from reki_ray.training.worker import TrainingData, new_bundle

    torch.manual_seed(0)
    settings = config(root)
    for seed, split in enumerate(schema.SPLITS):
        rows = synthetic.samples(workspace, SAMPLES, (EVENTS - 1, EVENTS), seed)
        workspace.write_table(schema.SAMPLES[split], rows)
    dataset = read_dataset(workspace)
    found = {arm: read(workspace, arm, dataset.user_ids, dataset.item_ids)}
    data = TrainingData.of(dataset, found, settings.train)
    run = Run("din", arm, 0)
    bundle = new_bundle(run, settings.train, data)
    bundle.model.eval()
    bundles.save(workspace.local_path(run.folder), bundle)
    history = workspace.read_table(schema.INTERACTIONS)
    reporter = Reporter(quiet=True)
    version = publish_version(settings, workspace, workspace, run, history, reporter)
    return {"version": version.name, "arm": arm}
