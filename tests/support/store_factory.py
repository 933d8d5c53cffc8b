"""A tiny published store with a random real model, for tests of store and serving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from reki_ray.config import GateConfig, HeinConfig, NetworkConfig, RerankNetworkConfig
from reki_ray.core.workspace import Workspace
from reki_ray.models import artifact as bundles
from reki_ray.models.artifact import ModelBundle, Origin, RerankBundle, Vectors
from reki_ray.models.base_model import Architecture
from reki_ray.models.candidate_scorer import CatalogueInputs
from reki_ray.models.ctr_model import CTRModel
from reki_ray.models.features import FeatureSpace
from reki_ray.models.rerank_model import RerankArchitecture, RerankModel
from reki_ray.retrieval.builder import Learned, TowerItems, content_of, write_retrieval
from reki_ray.retrieval.files import RetrievalDescription
from reki_ray.retrieval.tower_trainer import all_item_vectors
from reki_ray.retrieval.two_tower import TwoTower
from reki_ray.schema import (
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    ITEMS_SCHEMA,
    KNOWLEDGE_SCHEMA,
    POSITION,
    SAMPLES,
    SPLITS,
    USER_ID,
    USERS_SCHEMA,
    Side,
    Split,
)
from reki_ray.stages.publish_vectors import mean_direction
from reki_ray.store.hash_index import write_indexed
from reki_ray.store.manifest import (
    CATALOGUE_FILE,
    KNOWLEDGE_FILE,
    MODEL_FOLDER,
    PROFILES_FILE,
    RERANKER_FOLDER,
    RETRIEVAL_FOLDER,
    VECTOR_FILES,
    Description,
    Prestore,
    RerankerDescription,
)
from reki_ray.store.tables import catalogue_table, knowledge_table, profiles_table
from reki_ray.store.vectors import DType, VectorTable, write_vectors

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
SAMPLES_OF: dict[Split, tuple[int, int]] = {"train": (1, 4), "valid": (4, 5), "test": (5, 6)}
"""First and last position of every user's samples of a split."""
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


def write_samples(workspace: Workspace) -> None:
    """Writes the samples of the tiny data."""
    positions = np.array([k % 6 for k in range(len(INTERACTIONS_TABLE))], dtype=np.int32)
    table = INTERACTIONS_TABLE.append_column(POSITION, pa.array(positions))
    for split in SPLITS:
        first, last = SAMPLES_OF[split]
        rows = table.filter(pa.array((first <= positions) & (positions < last)))
        workspace.write_table(SAMPLES[split], rows.drop_columns(["rating"]))


def fill(
    folder: Path,
    *,
    knowledge: bool = True,
    seed: int = 0,
    dtype: DType = "float32",
    prestore: Prestore = "h",
    retrieval: bool = False,
    reranker: bool = False,
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
    if retrieval:
        _fill_retrieval(folder, bundle, fallback.get("items"), prestore)
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
        reranker=_fill_reranker(folder, bundle, dtype, prestore) if reranker else None,
    )


def make_reranker(*, knowledge: bool = True) -> RerankBundle:
    """A random reranker over the tiny data, for lists of 4 items."""
    clicks = make_bundle(knowledge=knowledge)
    architecture = RerankArchitecture(
        **{**clicks.architecture.model_dump(), "backbone": "prm"},
        reranker=RerankNetworkConfig(hidden=8, feed_forward=8),
        list_size=4,
    )
    model = RerankModel(architecture, clicks.features)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return RerankBundle(model.eval(), architecture, clicks.features, 5, clicks.origin)


def _fill_reranker(
    folder: Path, clicks: ModelBundle, dtype: DType, prestore: Prestore
) -> RerankerDescription:
    bundle = make_reranker(knowledge=clicks.uses_knowledge)
    target = folder / RERANKER_FOLDER
    fingerprint = bundles.save(target, bundle)
    fallback: dict[Side, list[float]] = {}
    if prestore == "h" and bundle.uses_knowledge:
        users, items = bundle.augment_users, bundle.augment_items
        fallback["users"] = _fill_side(target, "users", USER_IDS, users, dtype)
        fallback["items"] = _fill_side(target, "items", ITEM_IDS, items, dtype)
    return RerankerDescription(name="prm", seed=0, fingerprint=fingerprint, fallback=fallback)


def _fill_retrieval(
    folder: Path, bundle: ModelBundle, fallback: list[float] | None, prestore: Prestore
) -> None:
    stored = unknown = None
    if fallback is not None:
        unknown = np.array(fallback, dtype=np.float32)
        stored = VectorTable([folder / VECTOR_FILES["items"]], unknown).lookup(ITEM_IDS)[0]
    attributes = [{"genre": [GENRES[i % 3]]} for i in range(len(ITEM_IDS))]
    inputs = CatalogueInputs(bundle, ITEM_IDS, attributes, stored, unknown, prestored=prestore)
    catalogue = TowerItems(ITEM_IDS, content_of(inputs), np.arange(len(ITEM_IDS))[::-1])
    towers = TwoTower(len(ITEM_IDS), catalogue.content.shape[1], 8, 0.0).eval()
    with torch.inference_mode():
        vectors = all_item_vectors(towers, catalogue.content)
    write_retrieval(
        folder / RETRIEVAL_FOLDER,
        catalogue,
        Learned(RetrievalDescription(history=5, positive_above=3.0), towers, vectors),
        INTERACTIONS_TABLE,
        exact_below=1000,
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
    r = representations(ids)
    write_vectors(folder / VECTOR_FILES[side], ids, augment(r), ["cluster"] * len(ids), dtype=dtype)
    return [float(x) for x in augment(mean_direction(r))[0]]


def representations(ids: list[str]) -> Vectors:
    """Unit representations of a side's ids."""
    r = np.random.default_rng(len(ids)).normal(size=(len(ids), REPRESENTATION)).astype(np.float32)
    unit: Vectors = r / np.linalg.norm(r, axis=1, keepdims=True)
    return unit


def writable(path: Path) -> Path:
    """A file or folder of a version, for who damages it: versions are read-only."""
    for file in (path, *path.rglob("*")):
        file.chmod(file.stat().st_mode | 0o200)
    return path
