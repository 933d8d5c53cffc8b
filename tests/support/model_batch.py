"""A batch for whole models, clicks or lists: padding, unknown items and values, knowledge."""

from __future__ import annotations

import numpy as np
import torch

from reki_ray.models.base_model import History, KnowledgeVectors, ModelBatch
from reki_ray.models.features import GAP_ROWS, FeatureSpace
from tests.support.backbone_inputs import LENGTH

USERS, DIMENSION = 3, 5


def model_features() -> FeatureSpace:
    """Six items, two of them with training samples, and two kinds of users."""
    return FeatureSpace.build(
        items={f"m{k}": {"genre": ["A", "B"][: k % 3]} for k in range(6)},
        users=[{"gender": ["F"]}, {"gender": ["M"], "age": ["25-34"]}],
        ratings=np.array([1.0, 3.0, 5.0, np.nan], dtype=np.float32),
        counts={"m0": 6, "m1": 3},
    )


def model_batch(features: FeatureSpace, samples: int, candidates: int | None = None) -> ModelBatch:
    """Samples of three users; with `candidates` lists of so many, every third of them short.

    Items are padding, those of the vocabulary in its order, and one that it does not hold.
    """
    generator = np.random.default_rng(0)
    ids = ["", *features.items, "never seen"]
    records = [None, *({"genre": ["A", "B", "C"][: k % 4]} for k in range(len(ids) - 1))]
    items = features.encode_items(ids, records)
    items.ids[0] = 0
    history = generator.integers(0, len(ids), (samples, LENGTH))
    ratings = features.encode_ratings(generator.choice([1.0, 3.0, 5.0, np.nan], history.shape))
    gaps = generator.integers(1, GAP_ROWS, history.shape)
    users = features.encode_users([{"gender": ["F"], "age": ["25-34"]}, {"gender": ["X"]}, None])
    shape = (samples,) if candidates is None else (samples, candidates)
    targets = generator.integers(1, len(ids), shape)
    if candidates is not None:
        targets[::3, 3:] = 0
    user_rows = torch.from_numpy(generator.integers(0, USERS, samples))
    random = torch.Generator().manual_seed(0)
    return ModelBatch(
        item_ids=torch.from_numpy(items.ids),
        item_attributes={k: torch.from_numpy(v) for k, v in items.attributes.items()},
        targets=torch.from_numpy(targets),
        history=History(
            torch.from_numpy(history),
            torch.from_numpy(np.where(history > 0, ratings, 0)),
            torch.from_numpy(np.where(history > 0, gaps, 0)),
        ),
        user_attributes={k: torch.from_numpy(v) for k, v in users.items()},
        distinct_users=USERS,
        users=user_rows,
        user_knowledge=KnowledgeVectors(torch.randn(USERS, DIMENSION, generator=random), user_rows),
        item_knowledge=KnowledgeVectors(
            torch.randn(len(ids), DIMENSION, generator=random), torch.arange(len(ids))
        ),
    )
