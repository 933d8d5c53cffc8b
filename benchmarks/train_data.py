"""Workspaces of the train benchmark: MovieLens with representations, a long synthetic stream."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import synthetic
from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.vectors import normalise, vectors_table
from reki_ray.core.workspace import Workspace
from reki_ray.data.leak_guard import before_cut

DIMENSION = 768
SHARD_ROWS = 2_000_000
_STREAM_USERS, _STREAM_ITEMS, _STREAM_EVENTS, _STREAM_CUT = 100_000, 20_000, 20, 5


def config(folder: Path | str, train: dict[str, Any], ml1m: str = "") -> RekiConfig:
    """The configuration of one run.

    Args:
        folder: Workspace.
        train: Section `train`.
        ml1m: Folder of MovieLens-1M; empty takes MovieLens-100K.
    """
    source = {"kind": "movielens_1m", "path": ml1m} if ml1m else {"kind": "movielens_100k"}
    return RekiConfig.model_validate(
        {
            "name": "bench-train",
            "workspace": str(folder),
            "data": {"source": source},
            "extract": {"mode": "individual"},
            "train": {"arms": ["fair_base", "reki_i"], **train},
        }
    )


def fill_movielens(folder: str, ml1m: str) -> dict[str, Any]:
    """Ingested MovieLens, and representations of d = 768 in place of those of an LLM.

    An item's is a fixed random projection of the words of its title and of its attributes, a
    user's the mean over the items that prompts may see: knowledge of some use, at no cost.
    """
    from reki_ray.stages import ingest  # after set_environment

    workspace = Workspace(folder)
    loaded = config(folder, {}, ml1m)
    details = ingest.run(loaded, workspace, Reporter(quiet=True)).details
    item_ids, items = _item_vectors(workspace.read_table(schema.ITEMS))
    _write(workspace, "items", item_ids, items)
    user_ids = workspace.read_table(schema.USERS)[schema.USER_ID].to_pylist()
    history = before_cut(
        workspace.read_table(schema.INTERACTIONS), workspace.read_table(schema.CUTS)
    )
    places = {key: row for row, key in enumerate(user_ids)}
    of_item = {key: row for row, key in enumerate(item_ids)}
    users = np.zeros((len(user_ids), DIMENSION), dtype=np.float32)
    rows = [places[key] for key in history[schema.USER_ID].to_pylist()]
    np.add.at(users, rows, items[[of_item[key] for key in history[schema.ITEM_ID].to_pylist()]])
    _write(workspace, "users", user_ids, normalise(users))
    return {"movielens": loaded.data.source.kind, **details["dataset"]["samples"]}


def _item_vectors(table: pa.Table) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(0)
    words: dict[str, np.ndarray] = {}
    vectors = np.zeros((len(table), DIMENSION), dtype=np.float32)
    for row, item in enumerate(table.to_pylist()):
        attributes = dict(item[schema.ATTRIBUTES] or [])
        of_item = item[schema.TITLE].lower().split()
        of_item += [f"{name}={value}" for name, values in attributes.items() for value in values]
        for word in of_item:
            if word not in words:
                words[word] = random.normal(size=DIMENSION).astype(np.float32)
            vectors[row] += words[word]
    return table[schema.ITEM_ID].to_pylist(), normalise(vectors)


def _write(workspace: Workspace, side: schema.Side, ids: list[str], vectors: np.ndarray) -> None:
    table = vectors_table(ids, vectors, ["individual"] * len(ids))
    for tables in (schema.REPRESENTATIONS, schema.TEXT_REPRESENTATIONS):
        workspace.write_table(tables[side], table)


def fill_stream(folder: str, samples: str) -> dict[str, Any]:
    """Invented users and items, and one file of training samples under many names."""
    workspace = Workspace(folder)
    synthetic.fill(workspace, _STREAM_USERS, _STREAM_ITEMS, _STREAM_EVENTS)
    rows = min(SHARD_ROWS, int(samples))
    cuts = (_STREAM_CUT, _STREAM_EVENTS)
    workspace.write_table(schema.SAMPLES["train"], synthetic.samples(workspace, rows, cuts, seed=1))
    workspace.write_table(
        schema.SAMPLES["valid"], synthetic.samples(workspace, 20_000, cuts, seed=2)
    )
    workspace.write_table(
        schema.SAMPLES["test"], synthetic.samples(workspace, 20_000, cuts, seed=3)
    )
    shards = -(-int(samples) // rows)
    first = workspace.local_path(schema.SAMPLES["train"].path, "part-00000.parquet")
    for number in range(1, shards):
        os.link(first, first.with_name(f"part-{number:05}.parquet"))
    return {"samples": shards * rows, "shards": shards}
