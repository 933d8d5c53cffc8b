"""A trained model on disk: weights, architecture and vocabularies.

A folder holds `model.safetensors` (weights and running statistics) and `model.json`
(architecture, vocabularies, origin). No pickle: loading runs no code from the files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from reki_ray.errors import StoreError
from reki_ray.models.base_model import Architecture, EmbeddedModel
from reki_ray.models.ctr_model import CTRModel
from reki_ray.models.features import FIRST_OWN_ROW, FeatureSpace
from reki_ray.models.rerank_model import RerankArchitecture, RerankModel
from reki_ray.schema import Side

WEIGHTS: Final = "model.safetensors"
DESCRIPTION: Final = "model.json"
FORMAT: Final = 3

Vectors = npt.NDArray[np.float32]
Model = TypeVar("Model", bound=EmbeddedModel)
Layers = TypeVar("Layers", bound=Architecture)

_AUGMENT_ROWS: Final = 8192


@dataclass(frozen=True)
class Origin:
    """Origin of a model.

    Args:
        user_representations: Table of r_u, as `encode/users`; empty without knowledge of users.
        item_representations: Table of r_i, as `encode/items`; empty without knowledge of items.
    """

    arm: str
    seed: int
    user_representations: str = ""
    item_representations: str = ""


@dataclass(frozen=True)
class Bundle(Generic[Model, Layers]):
    """A trained model of one kind, ready to score.

    Args:
        history: Number L of past interactions it sees.
        fingerprint: SHA-256 over both files; empty for a model that was not saved.
    """

    model: Model
    architecture: Layers
    features: FeatureSpace
    history: int
    origin: Origin
    fingerprint: str = ""

    @property
    def arm(self) -> str:
        """Experimental arm."""
        return self.origin.arm

    @property
    def uses_knowledge(self) -> bool:
        """Whether the model takes augmented vectors."""
        return self.architecture.representation > 0

    @property
    def augmented_dim(self) -> int:
        """Length q of an augmented vector; 0 without knowledge."""
        return self.architecture.augmented

    def augment_users(self, r: Vectors) -> Vectors:
        """Augmented vectors h_u (N, q) of representations r_u (N, K d); see `augment_items`."""
        return self._augment(r, "users")

    def augment_items(self, r: Vectors) -> Vectors:
        """Augmented vectors h_i (N, q) of representations r_i (N, K d), K factors side by side.

        Raises:
            StoreError: The model has no knowledge side, or another d.
        """
        return self._augment(r, "items")

    def item_embeddings(self) -> tuple[tuple[str, ...], Vectors]:
        """Ids of the items that training saw (M), and the embeddings (M, E) of their ids."""
        rows = self.model.items.ids.weight.detach()[FIRST_OWN_ROW:]
        return self.features.items, rows.cpu().numpy()

    def _augment(self, r: Vectors, side: Side) -> Vectors:
        expected = self.architecture.width(side)
        if not expected or r.ndim != 2 or r.shape[1] != expected:
            raise StoreError(
                f"representations of shape {r.shape} do not fit a model that takes {expected} "
                "numbers per id",
                where=f"model of arm {self.arm}",
                todo="Train the model on the same kind of representations.",
            )
        model = self.model
        augment = model.augment_users if side == "users" else model.augment_items
        out = np.empty((len(r), self.augmented_dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(r), _AUGMENT_ROWS):
                part = np.ascontiguousarray(r[start : start + _AUGMENT_ROWS], dtype=np.float32)
                out[start : start + len(part)] = augment(torch.from_numpy(part)).numpy()
        return out


ModelBundle = Bundle[CTRModel, Architecture]
RerankBundle = Bundle[RerankModel, RerankArchitecture]


def save(folder: Path, bundle: Bundle[Any, Any]) -> str:
    """Write a model into a folder, created if missing, and return the files' fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in bundle.model.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    description = {
        "format": FORMAT,
        "arm": bundle.origin.arm,
        "backbone": bundle.architecture.backbone,
        "seed": bundle.origin.seed,
        "history": bundle.history,
        "representations": {
            "dimension": bundle.architecture.representation,
            "users": bundle.origin.user_representations,
            "items": bundle.origin.item_representations,
        },
        "architecture": bundle.architecture.model_dump(mode="json"),
        "features": asdict(bundle.features),
    }
    text = json.dumps(description, ensure_ascii=False, sort_keys=True)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return fingerprint(folder)


def not_finite(model: nn.Module) -> Iterator[str]:
    """Names of the parameters and buffers of a model that hold NaN or infinity."""
    for name, values in itertools.chain(model.named_parameters(), model.named_buffers()):
        if not torch.isfinite(values).all():
            yield name


def fingerprint(folder: Path) -> str:
    """SHA-256 over the content of both files of a saved model.

    Raises:
        StoreError: A file is missing.
    """
    digest = hashlib.sha256()
    for name in (WEIGHTS, DESCRIPTION):
        try:
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
        except OSError as error:
            raise _damaged(folder, error) from error
    return digest.hexdigest()


def load(folder: Path) -> ModelBundle:
    """Read a model of clicks from a folder, on the CPU, in evaluation mode.

    Raises:
        StoreError: A file is missing, damaged, of another format or kind, or the two do not fit.
    """
    return _load(folder, Architecture, CTRModel)


def load_reranker(folder: Path) -> RerankBundle:
    """Read a reranker from a folder, on the CPU, in evaluation mode.

    Raises:
        StoreError: As `load`.
    """
    return _load(folder, RerankArchitecture, RerankModel)


def _load(
    folder: Path, layers: type[Layers], make: Callable[[Layers, FeatureSpace], Model]
) -> Bundle[Model, Layers]:
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_bytes())
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']!r} is not {FORMAT}")
        architecture = layers.model_validate(description["architecture"])
        features = TypeAdapter(FeatureSpace).validate_python(description["features"])
        origin = Origin(
            arm=description["arm"],
            seed=description["seed"],
            user_representations=description["representations"]["users"],
            item_representations=description["representations"]["items"],
        )
        model = make(architecture, features)
        model.load_state_dict(load_file(folder / WEIGHTS))
        for name in not_finite(model):
            raise ValueError(f"{name} holds numbers that are not finite")
        history = int(description["history"])
    except (
        *(OSError, ValueError, KeyError, TypeError, RuntimeError),
        *(SafetensorError, ValidationError),
    ) as error:
        raise _damaged(folder, error) from error
    model.eval().requires_grad_(False)
    return Bundle(model, architecture, features, history, origin, fingerprint(folder))


def _damaged(folder: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the model cannot be read: {error}",
        where=str(folder),
        todo="Train it again, or publish it again from a workspace that has it.",
    )
