"""A tiny published store with a random real model, for tests of store and serving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from reki_ray.config import GateConfig, HeinConfig, NetworkConfig
from reki_ray.models import bundle as bundles
from reki_ray.models.bundle import ModelBundle, Origin, Vectors
from reki_ray.models.ctr_model import CTRModel
from reki_ray.models.embedded_model import Architecture
from reki_ray.models.fields import FeatureSpace
from reki_ray.schema import (
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    ITEMS_SCHEMA,
    KNOWLEDGE_SCHEMA,
    USER_ID,
    USERS_SCHEMA,
    Side,
)
from reki_ray.store.content_tables import catalogue_table, knowledge_table, profiles_table
from reki_ray.store.index import write_indexed
from reki_ray.store.manifest import Prestore
from reki_ray.store.stage import mean_direction
from reki_ray.store.vectors import DType, write_vectors
from reki_ray.store.versions import (
    CATALOGUE_FILE,
    KNOWLEDGE_FILE,
    MODEL_FOLDER,
    PROFILES_FILE,
    VECTOR_FILES,
    Description,
)

USER_IDS = ["u0", "u1", "ü/2", "u3"]
ITEM_IDS = [f"m{i}" for i in range(12)]
GENRES = ["Action", "Comedy", "Drama"]
REPRESENTATION = 8

USERS_TABLE = pa.Table.from_pylist(
    [{USER_ID: u, "attributes": [("gender", ["FM"[i % 2]])]} for i, u in enumerate(USER_IDS)],
    schema=USERS_SCHEMA,
)
ITEMS_TABLE = pa.Table.from_pylist(
    [
        {ITEM_ID: m, "title": f"Film {i}", "attributes": [("genre", [GENRES[i % 3]])]}
        for i, m in enumerate(ITEM_IDS)
    ],
    schema=ITEMS_SCHEMA,
)
INTERACTIONS_TABLE = pa.Table.from_pylist(
    [
        {USER_ID: u, ITEM_ID: ITEM_IDS[k], "timestamp": 100 + k, "rating": 1.0 + k % 5, "label": 1}
        for u in sorted(USER_IDS[:3])
        for k in range(6)
    ],
    schema=INTERACTIONS_SCHEMA,
)
ANSWERS_TABLE = pa.Table.from_pylist(
    [
        {
            "subject_kind": kind,
            "subject_id": subject,
            "factor": "*",
            "text": text,
            "prompt_hash": subject,
            "model": "scripted",
            "revision": "1",
            "engine": "scripted",
            "prompt_tokens": 1,
            "generated_tokens": 1,
            "finish_reason": "stop",
            "created_at": 7,
        }
        for kind, subject, text in (
            ("user_cluster", "u0000", "They like action."),
            ("item_cluster", "i0000", "These films are loud."),
        )
    ],
    schema=KNOWLEDGE_SCHEMA,
)
CLUSTERS: dict[Side, dict[str, str]] = {
    "users": dict.fromkeys(USER_IDS[:3], "u0000"),
    "items": dict.fromkeys(ITEM_IDS[:6], "i0000"),
}


def make_bundle(
    *, knowledge: bool = True, seed: int = 0, representation: int = REPRESENTATION
) -> ModelBundle:
    """A random model of the real architecture over the tiny data."""
    torch.manual_seed(seed)
    features = FeatureSpace.build(
        items={m: {"genre": [GENRES[i % 3]]} for i, m in enumerate(ITEM_IDS)},
        users=[{"gender": ["F"]}, {"gender": ["M"]}],
        ratings=np.array([1, 2, 3, 4, 5], dtype=np.float32),
    )
    architecture = Architecture(
        backbone="din",
        network=NetworkConfig(embedding=8, attention=(8,), mlp=(16, 8)),
        hein=HeinConfig(hidden=8, output=8),
        gate=GateConfig(),
        representation=representation if knowledge else 0,
        id_dropout=0.0,
    )
    model = CTRModel(architecture, features)
    # Larger weights than the initial ones: else all scores would be close to one half.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    origin = Origin("fair_base", seed)
    if knowledge:
        origin = Origin("reki_c", seed, "encode/users", "encode/items")
    return ModelBundle(model.eval(), architecture, features, 5, origin)


def fill(
    folder: Path,
    *,
    knowledge: bool = True,
    seed: int = 0,
    dtype: DType = "float32",
    prestore: Prestore = "h",
) -> Description:
    """Writes a whole version, as the stage does, from the tiny data."""
    write_indexed(
        folder / PROFILES_FILE, profiles_table(USERS_TABLE, INTERACTIONS_TABLE, 4), USER_ID
    )
    write_indexed(folder / CATALOGUE_FILE, catalogue_table(ITEMS_TABLE), ITEM_ID)
    answers = ANSWERS_TABLE if knowledge else ANSWERS_TABLE.slice(0, 0)
    texts = knowledge_table(answers, CLUSTERS if knowledge else {})
    write_indexed(folder / KNOWLEDGE_FILE, texts, "id")
    bundle = make_bundle(knowledge=knowledge, seed=seed)
    fingerprint = bundles.save(folder / MODEL_FOLDER, bundle)
    fallback: dict[Side, list[float]] = {}
    if knowledge:
        users, items = bundle.augment_users, bundle.augment_items
        if prestore == "r":
            users = items = _unchanged
        fallback["users"] = _fill_side(folder, "users", USER_IDS, users, dtype)
        fallback["items"] = _fill_side(folder, "items", ITEM_IDS, items, dtype)
    return Description(
        arm=bundle.arm,
        backbone="din",
        seed=seed,
        model_fingerprint=fingerprint,
        dimension=bundle.augmented_dim,
        dtype=dtype,
        prestore=prestore,
        users=len(USER_IDS),
        items=len(ITEM_IDS),
        fallback=fallback,
    )


def _unchanged(r: Vectors) -> Vectors:
    return r


def _fill_side(
    folder: Path,
    side: Side,
    ids: list[str],
    augment: Callable[[Vectors], Vectors],
    dtype: DType,
) -> list[float]:
    r = np.random.default_rng(len(ids)).normal(size=(len(ids), REPRESENTATION)).astype(np.float32)
    r /= np.linalg.norm(r, axis=1, keepdims=True)
    write_vectors(folder / VECTOR_FILES[side], ids, augment(r), ["cluster"] * len(ids), dtype=dtype)
    return [float(x) for x in augment(mean_direction(r))[0]]
