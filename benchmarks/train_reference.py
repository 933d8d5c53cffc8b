"""The reference of the train benchmark: DIN with HEIN as a plain vectorised loop in torch.

The same inputs, sizes, activation and optimiser as the real path, without any of its ways to save
work: every sample embeds its own history, HEIN runs on every row, batches are built between the
steps, all in float32. It shares no model code with reki_ray.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reki_ray.metrics.classification import auc
from reki_ray.training.arms import Representations
from reki_ray.training.batches import EncodedDataset
from reki_ray.training.dataset import Samples
from reki_ray.training.worker import TrainingData

BATCH, HISTORY, SIZE, DROPOUT, RATE = 1024, 10, 32, 0.2, 1e-3
_SHARED, _DEDICATED, _HIDDEN, _OUTPUT = 2, 6, 128, 32
_VALID_BATCH = 4096


class Dice(nn.Module):
    """Gate by batch statistics, running ones in evaluation; padding counts as any other row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Activation of x (N, width)."""
        p = torch.sigmoid(self.norm(x))
        return p * x + (1 - p) * self.alpha * x


class Experts(nn.Module):
    """n two-layer experts over one input, all in two products."""

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        self.n = n
        self.first = nn.Linear(d, n * _HIDDEN)
        self.second = nn.Parameter(torch.randn(n, _HIDDEN, _OUTPUT) * _HIDDEN**-0.5)
        self.bias = nn.Parameter(torch.zeros(n, 1, _OUTPUT))

    def forward(self, r: Tensor) -> Tensor:
        """Outputs (n, B, 32) of representations (B, d)."""
        hidden = torch.relu(self.first(r)).view(len(r), self.n, _HIDDEN).transpose(0, 1)
        return torch.relu(torch.baddbmm(self.bias, hidden, self.second))


@dataclass(frozen=True)
class Tables:
    """What the samples point into, as tensors."""

    item_rows: Tensor
    item_attributes: list[Tensor]
    user_attributes: list[Tensor]
    users: Tensor
    items: Tensor

    @classmethod
    def of(cls, data: EncodedDataset, found: Representations) -> Tables:
        """Of a data set and representations."""
        return cls(
            torch.from_numpy(data.item_ids),
            [torch.from_numpy(rows) for rows in data.item_attributes.values()],
            [torch.from_numpy(rows) for rows in data.user_attributes.values()],
            torch.from_numpy(found.users.vectors[found.users.rows]),
            torch.from_numpy(found.items.vectors[found.items.rows]),
        )


class Reference(nn.Module):
    """DIN on id, attributes, profile and rated history, with h_u and h_i of HEIN."""

    def __init__(self, data: TrainingData, tables: Tables) -> None:
        super().__init__()
        features = data.features
        self.tables = tables

        def bags(fields: Any) -> nn.ModuleList:
            made = (nn.EmbeddingBag(f.rows, SIZE, mode="mean", padding_idx=0) for f in fields)
            return nn.ModuleList(made)

        self.ids = nn.Embedding(features.item_rows, SIZE, padding_idx=0)
        self.ratings = nn.Embedding(features.rating_rows, SIZE, padding_idx=0)
        self.of_items = bags(features.item_fields.values())
        self.of_users = bags(features.user_fields.values())
        for table in (self.ids, self.ratings, *self.of_items, *self.of_users):
            nn.init.normal_(table.weight, std=0.05)  # type: ignore[arg-type]
            table.weight.data[0] = 0  # type: ignore[union-attr,index]
        self.attention = nn.Sequential(
            nn.Linear(4 * SIZE, 32), Dice(32), nn.Linear(32, 16), Dice(16), nn.Linear(16, 1)
        )
        d = tables.users.shape[1]
        self.shared = Experts(_SHARED, d)
        self.sides = nn.ModuleList(Experts(_DEDICATED, d) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(d, _SHARED + _DEDICATED) for _ in range(2))
        width = (3 + len(features.user_fields)) * SIZE + 2 * _OUTPUT
        self.head = nn.Sequential(
            *(nn.Linear(width, 200), Dice(200), nn.Dropout(DROPOUT)),
            *(nn.Linear(200, 80), Dice(80), nn.Dropout(DROPOUT), nn.Linear(80, 1)),
        )

    def embed(self, items: Tensor) -> Tensor:
        """Vectors (N, E) of items, 0 being padding."""
        rows = zip(self.of_items, self.tables.item_attributes, strict=True)
        return self.ids(self.tables.item_rows[items]) + sum(bag(t[items]) for bag, t in rows)

    def mix(self, side: int, r: Tensor) -> Tensor:
        """Augmented vectors (B, 32) of representations (B, d) of users (0) or items (1)."""
        r = r * r.shape[1] ** 0.5
        experts = torch.cat([self.shared(r), self.sides[side](r)])
        return torch.einsum("nk,knq->nq", torch.softmax(self.gates[side](r), dim=-1), experts)

    def forward(self, users: Tensor, targets: Tensor, history: Tensor, rated: Tensor) -> Tensor:
        """Logits (B,) of users (B,), items (B,), past items and ratings (B, L)."""
        target = self.embed(targets)
        past = self.embed(history.reshape(-1)).view(*history.shape, SIZE) + self.ratings(rated)
        wide = target.unsqueeze(1).expand_as(past)
        pairs = torch.cat([past, wide, past - wide, past * wide], dim=-1)
        weights = self.attention(pairs.flatten(0, 1)).view(history.shape)
        weights = weights.masked_fill(history == 0, 0.0)
        interest = (weights.unsqueeze(-1) * past).sum(dim=1)
        rows = zip(self.of_users, self.tables.user_attributes, strict=True)
        parts = [bag(table[users]) for bag, table in rows]
        parts += [target, interest, target * interest]
        parts += [
            self.mix(0, self.tables.users[users]),
            self.mix(1, self.tables.items[targets - 1]),
        ]
        logits: Tensor = self.head(torch.cat(parts, dim=1)).squeeze(-1)
        return logits


def train(data: TrainingData, seed: int, epochs: int) -> list[dict[str, float]]:
    """Train the reference; validation AUC and samples a second of every epoch.

    Args:
        data: What the real path reads.
        seed: Seed of weights and batches.
        epochs: Passes over the training samples.
    """
    found = data.representations["reki_i"]
    assert found is not None
    torch.manual_seed(seed)
    model = Reference(data, Tables.of(data.encoded, found))
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    random = np.random.default_rng(seed)
    samples, rows = data.samples["train"], []
    for _ in range(epochs):
        model.train()
        order = random.permutation(len(samples))
        started = time.perf_counter()
        for start in range(0, len(order), BATCH):
            part = samples.take(order[start : start + BATCH])
            logits = model(*inputs(data.encoded, part))
            labels = torch.from_numpy(part.labels)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        seconds = time.perf_counter() - started
        rows.append({"auc": evaluate(model, data), "samples_per_second": len(order) / seconds})
    return rows


def evaluate(model: Reference, data: TrainingData) -> float:
    """AUC on the validation samples."""
    model.eval()
    samples = data.samples["valid"]
    with torch.inference_mode():
        scores = [
            model(*inputs(data.encoded, samples.take(part)))
            for part in np.array_split(np.arange(len(samples)), 1 + len(samples) // _VALID_BATCH)
        ]
    return float(auc(samples.labels, torch.cat(scores).numpy()) or 0.0)


def inputs(data: EncodedDataset, part: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users, items (1 to I), past items and ratings of samples."""
    back = np.arange(HISTORY, 0, -1)
    there = back <= part.positions[:, None]
    rows = np.where(there, (data.offsets[part.users] + part.positions)[:, None] - back, 0)
    history = np.where(there, data.past_items[rows], 0)
    rated = np.where(there, data.past_ratings[rows], 0)
    found = (part.users, part.items + 1, history, rated)
    users, targets, past, ratings = (torch.from_numpy(array) for array in found)
    return users, targets, past, ratings
