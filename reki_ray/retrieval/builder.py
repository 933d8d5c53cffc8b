"""Retrieval files of a new version: towers are trained, or taken over from the version before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.errors import StoreError
from reki_ray.models.candidate_scorer import FIRST_ITEM, CatalogueInputs
from reki_ray.retrieval.files import (
    DESCRIPTION_FILE,
    ITEMS_FILE,
    TOWERS_FILE,
    RetrievalDescription,
    item_vectors,
    read_description,
    write_items,
    write_seen,
)
from reki_ray.retrieval.index import Vectors
from reki_ray.retrieval.positives import Likes, held_positives, streamed_positives
from reki_ray.retrieval.tower_trainer import all_item_vectors, fit
from reki_ray.retrieval.two_tower import TwoTower
from reki_ray.schema import ITEM_ID
from reki_ray.store.hash_index import IndexedTable, unusable
from reki_ray.training.dataset import Dataset, Samples, read_dataset
from reki_ray.training.sample_stream import streams

CANDIDATES: Final = 100
_MEASURED: Final = 2000
"""Samples that recall is measured on: the standard error of a share is then about 0.01."""
IDS = "ids.weight"
"""What was learned of ids: it is part of the items' vectors."""


@dataclass(frozen=True)
class TowerItems:
    """I distinct items of the version, as its model takes them.

    Args:
        content: What the model knows of each, see `content_of`, (I, X).
        samples: Training samples of each (I,).
    """

    ids: list[str]
    content: Vectors
    samples: npt.NDArray[np.int64]

    @classmethod
    def of(cls, inputs: CatalogueInputs, ids: Sequence[str]) -> TowerItems:
        """All items of a model's catalogue, in its order."""
        features = inputs.bundle.features
        counts = dict(zip(features.items, features.item_counts, strict=True))
        samples = np.array([counts.get(item, 0) for item in ids], dtype=np.int64)
        return cls(list(ids), content_of(inputs), samples)


@dataclass(frozen=True)
class Learned:
    """What is known for retrieval.

    Args:
        towers: Make vectors of users and of later items; None retrieves by popularity.
        vectors: Vectors of all items (I, D).
    """

    description: RetrievalDescription
    towers: TwoTower | None = None
    vectors: Vectors | None = None


def content_of(inputs: CatalogueInputs) -> Vectors:
    """Item vector and, where there is one, h_i of every item of a catalogue, (I, X)."""
    parts = [inputs.items.vectors[FIRST_ITEM:]]
    if inputs.augmented is not None:
        parts.append(inputs.augmented[FIRST_ITEM:])
    content: Vectors = torch.cat(parts, dim=1).numpy()
    return content


class RetrievalBuilder:
    """Learns what the retrieval of a version needs.

    Args:
        run: Workspace that holds the samples.
        model: Fingerprint of the served model.
        earlier: Retrieval files of the version before, see `retrieval_folders`, whose towers are
            taken over where they would come out the same.
    """

    def __init__(
        self,
        config: RekiConfig,
        run: Workspace,
        reporter: Reporter,
        *,
        model: str,
        seed: int,
        earlier: Sequence[Path],
    ) -> None:
        self._config = config
        self._settings = config.publish.retrieval
        self._run = run
        self._reporter = reporter
        self._seed = seed
        self._earlier = earlier
        identity = {
            "model": model,
            "seed": seed,
            "above": config.data.positive_above,
            "settings": self._settings.model_dump(mode="json", exclude={"exact_below", "kind"}),
        }
        text = json.dumps(identity, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()

    def learn(self, catalogue: TowerItems) -> Learned:
        """Vectors of a version's items, and what makes those of users.

        Raises:
            DataError: The run's tables are missing or damaged.
        """
        if self._settings.kind == "popular":
            return Learned(RetrievalDescription())
        try:
            learned = self._taken_over(catalogue)
        except StoreError as error:  # a new version is what helps against a damaged one
            self._reporter.say(f"publish: the towers are learned again: {error}")
            learned = None
        return learned or self._trained(catalogue)

    def _taken_over(self, catalogue: TowerItems) -> Learned | None:
        """What the version before learned; None if training now would give something else."""
        if not self._earlier or not (self._earlier[0] / TOWERS_FILE).exists():
            return None
        folder = self._earlier[0]
        description = read_description(folder)
        if description.fingerprint != self._key:
            return None
        towers = load_towers(folder)
        vectors = towers.new_item_vectors(torch.from_numpy(catalogue.content)).numpy()
        for part in self._earlier:
            items = IndexedTable(part / ITEMS_FILE, ITEM_ID)
            stored = item_vectors(items)
            assert stored is not None
            rows = items.find(catalogue.ids)
            vectors[rows >= 0] = stored[rows[rows >= 0]]
        return Learned(description, towers, vectors)

    def _trained(self, catalogue: TowerItems) -> Learned:
        settings, seed = self._settings, self._seed
        streamed = streams(self._config.train, self._run)
        dataset = read_dataset(self._run, ("valid",) if streamed else ("train", "valid"))
        if streamed:
            positives = streamed_positives(self._run, dataset, settings.max_samples, seed)
        else:
            positives = held_positives(dataset, "train")
        if not len(positives):
            self._reporter.say("publish: no training sample is positive, candidates by popularity")
            return Learned(RetrievalDescription())
        places = {item: place for place, item in enumerate(catalogue.ids)}
        trained = np.array([places[item] for item in dataset.item_ids])
        content = catalogue.content[trained]
        likes = Likes(dataset, self._config.data.positive_above, settings.history)
        towers = fit(content, likes, positives, settings, seed, self._reporter)
        # Later rounds know items that the run does not.
        vectors = towers.new_item_vectors(torch.from_numpy(catalogue.content)).numpy()
        vectors[trained] = all_item_vectors(towers, content)
        if not np.isfinite(vectors).all():
            self._reporter.say(
                "publish: the towers of retrieval diverged, candidates by popularity"
            )
            return Learned(RetrievalDescription())
        samples = drawn(held_positives(dataset, "valid"), seed)
        scores = _scores(towers, vectors[trained], likes, samples)
        popularity = catalogue.samples[trained].astype(np.float32)
        description = RetrievalDescription(
            fingerprint=self._key,
            history=settings.history,
            positive_above=self._config.data.positive_above,
            recall=recall(dataset, samples, scores),
            popular_recall=recall(dataset, samples, np.broadcast_to(popularity, scores.shape)),
        )
        return Learned(description, towers, vectors)


def write_retrieval(
    folder: Path, catalogue: TowerItems, learned: Learned, history: pa.Table, *, exact_below: int
) -> None:
    """Write the retrieval files of a version into a new folder.

    Args:
        history: All interactions, by user.
        exact_below: Items below which there is no index.
    """
    folder.mkdir()
    write_items(folder, catalogue.ids, catalogue.samples, learned.vectors, exact_below=exact_below)
    write_seen(folder, history)
    if learned.towers is not None:
        weights = learned.towers.state_dict()
        del weights[IDS]
        (folder / TOWERS_FILE).write_bytes(save(weights))  # save_file would keep it private
    text = learned.description.model_dump_json(indent=2)
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def load_towers(folder: Path) -> TwoTower:
    """Towers of retrieval files, without what was learned of ids.

    Raises:
        StoreError: The file is missing or damaged.
    """
    path = folder / TOWERS_FILE
    try:
        weights = load_file(path)
        dimension, content = weights["content.weight"].shape
        towers = TwoTower(0, content, dimension, 0.0)
        towers.load_state_dict({**weights, IDS: towers.ids.weight.detach()})
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable(f"the towers are missing or damaged: {error}", path) from error
    return towers.eval().requires_grad_(requires_grad=False)


def _scores(towers: TwoTower, vectors: Vectors, likes: Likes, samples: Samples) -> Vectors:
    """Of all items for every sample (N, I)."""
    liked, there = likes.before(samples)
    items = torch.from_numpy(vectors)
    with torch.inference_mode():
        users = towers.user_vectors(items, torch.from_numpy(liked), torch.from_numpy(there))
        scores: Vectors = (users @ items.T).numpy()
    return scores


def drawn(positives: Samples, seed: int) -> Samples:
    """At most `_MEASURED` of the samples, evenly drawn."""
    order = np.random.default_rng(seed).permutation(len(positives))[:_MEASURED]
    return positives.take(np.sort(order))


def recall(dataset: Dataset, samples: Samples, scores: Vectors) -> float | None:
    """Share of samples whose item is among the best ones that the user had not seen; None of none.

    Args:
        samples: N positive samples.
        scores: Of all items for each (N, I); items of one score count in their order.
    """
    hits = []
    starts = dataset.offsets[samples.users]
    ends = starts + samples.positions
    for row, item, start, end in zip(scores, samples.items, starts, ends, strict=True):
        seen = dataset.past_items[start:end]
        before = row > row[item]
        before[:item] |= row[:item] == row[item]
        before[seen] = False
        hits.append(item not in seen and before.sum() < CANDIDATES)
    return float(np.mean(hits)) if hits else None
