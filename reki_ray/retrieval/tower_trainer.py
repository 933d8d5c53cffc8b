"""Training of the two towers at publication."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from reki_ray.config import RetrievalConfig
from reki_ray.core.progress import Reporter
from reki_ray.retrieval.index import Vectors
from reki_ray.retrieval.positives import Likes
from reki_ray.retrieval.two_tower import TwoTower
from reki_ray.training.batches import distinct
from reki_ray.training.dataset import Samples

_ROWS_A_STEP: Final = 65_536


def fit(
    content: Vectors,
    likes: Likes,
    positives: Samples,
    config: RetrievalConfig,
    seed: int,
    reporter: Reporter,
) -> TwoTower:
    """Train the towers on the x_i of all items (I, X); the same seed gives the same ones."""
    with torch.random.fork_rng(devices=[]):  # who calls keeps a generator of their own
        torch.manual_seed(seed)
        items, width = content.shape
        model = TwoTower(items, width, config.dimension, config.id_dropout)
        model.standardise(torch.from_numpy(content))
        dense = [value for name, value in model.named_parameters() if name != "ids.weight"]
        optimisers = [
            torch.optim.AdamW(dense, lr=config.learning_rate, weight_decay=0.0),
            torch.optim.SparseAdam([model.ids.weight], lr=config.learning_rate),
        ]
        counts = np.bincount(positives.items, minlength=len(content))
        log_q = torch.log(torch.from_numpy(np.maximum(counts, 1) / counts.sum()).float())
        generator = np.random.default_rng(seed)
        total = min(len(positives) * config.epochs, config.max_samples)
        seen = 0
        with reporter.task("publish: retrieval", total=total, unit="samples") as task:
            while seen < total:
                order = generator.permutation(len(positives))[: total - seen]
                for start in range(0, len(order), config.batch_size):
                    batch = positives.take(order[start : start + config.batch_size])
                    for optimiser in optimisers:
                        rate = config.learning_rate * _rate(seen / total)
                        optimiser.param_groups[0]["lr"] = rate
                        optimiser.zero_grad()
                    loss = _loss(model, content, likes, batch, log_q)
                    loss.backward()  # type: ignore[no-untyped-call]
                    for optimiser in optimisers:
                        optimiser.step()
                    seen += len(batch)
                    task.advance(len(batch))
    return model.eval().requires_grad_(requires_grad=False)


def all_item_vectors(model: TwoTower, content: Vectors) -> Vectors:
    """v_i (I, D) of all items, given x_i (I, X)."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(content), _ROWS_A_STEP):
            part = torch.from_numpy(content[start : start + _ROWS_A_STEP])
            rows = torch.arange(start, start + len(part))
            parts.append(model.item_vectors(rows, part).numpy())
    return np.concatenate(parts)


def _loss(
    model: TwoTower, content: Vectors, likes: Likes, batch: Samples, log_q: torch.Tensor
) -> torch.Tensor:
    liked, there = likes.before(batch)
    rows, places = distinct(np.concatenate([batch.items, liked.reshape(-1)]), len(content))
    vectors = model.item_vectors(torch.from_numpy(rows), torch.from_numpy(content[rows]))
    index = torch.from_numpy(places)
    size = len(batch)
    users = model.user_vectors(vectors, index[size:].view(liked.shape), torch.from_numpy(there))
    targets = torch.from_numpy(batch.items)
    return model.loss(users, vectors.index_select(0, index[:size]), targets, log_q[targets])


def _rate(done: float) -> float:
    """Share of the peak rate: rises over the first tenth, then falls to 0 by a cosine."""
    if done < 0.1:
        return max(done / 0.1, 0.01)
    return 0.5 * (1 + float(np.cos(np.pi * (done - 0.1) / 0.9)))
