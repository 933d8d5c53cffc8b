"""Sections of the network: backbone, HEIN and the gate between ids and knowledge."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from reki_ray.config.base import Section

HeinScaling = Literal["length", "standardise", "whiten", "principal"]
"""What representations go through before HEIN."""


class HeinConfig(Section):
    """Hybrid-expert integration network (REKI, section on HEIN; KAR's HEA)."""

    kind: Literal["hein", "mixture", "mlp", "linear"] = "hein"
    """hein; its ablations: mixture, one for both sides; mlp, one expert a side; linear, a
    projection a side."""
    scaling: HeinScaling = "standardise"
    """Of representations before HEIN: length, their length alone, with which training diverges at
    high rates; standardise, component by component; whiten, components uncorrelated; principal, the
    largest principal components of the standardised ones."""
    components: int = Field(128, ge=1)
    """scaling principal: principal components that HEIN sees, at most."""
    rate: float = Field(1.0, gt=0)
    """Learning rate of HEIN in multiples of train.learning_rate: where a gate lets few samples
    reach it, it has to learn faster from them."""
    enrich_items: bool = False
    """Also add a projection of h_i to the vector of every item, past ones too: what attends to the
    history then sees knowledge on both sides."""
    alignment_weight: float = Field(0.0, ge=0)
    """Weight of a contrastive loss that draws the shared experts' output for an item towards the
    embedding of its id; 0: none."""
    shared_experts: int = Field(2, ge=1, description="Experts that serve both sides.")
    dedicated_experts: int = Field(6, ge=1, description="Experts of each side.")
    hidden: int = Field(128, ge=1, description="Hidden width of an expert.")
    output: int = Field(32, ge=1, description="Length q of an augmented vector.")

    @model_validator(mode="after")
    def _alignment_has_shared_experts(self) -> HeinConfig:
        if self.alignment_weight and self.kind not in ("hein", "mixture"):
            raise ValueError(
                f"alignment_weight aligns shared experts, and kind {self.kind} has none: set it to "
                "0, or take kind hein or mixture"
            )
        return self


def named_or_imported(kind: str, known: Collection[str], name: str) -> str:
    """Check that a name of some kind is known, or an import path `package.module:Name`.

    Raises:
        ValueError: It is neither.
    """
    module, _, attribute = name.partition(":")
    imported = attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))
    if name not in known and not imported:
        raise ValueError(
            f"{name!r} is not a {kind}: name one of {', '.join(known)}, or your own class as "
            "package.module:Name"
        )
    return name


BACKBONES: Final = (
    "din",
    "dien",
    "dcnv1",
    "dcnv2",
    "deepfm",
    "xdeepfm",
    "autoint",
    "fibinet",
    "fignn",
)
WITH_HISTORY: Final = frozenset({"din", "dien"})
"""Backbones that read the history step by step. The others multiply fields with each other: the
mean of the history is a field, and so are augmented vectors, which need its length."""


Backbone = Annotated[str, AfterValidator(partial(named_or_imported, "backbone", BACKBONES))]
"""A conventional recommendation model: one of `BACKBONES`, or the import path of a class that
takes `reki_ray.models.backbones.BackboneInputs`."""


class NetworkConfig(Section):
    """Sizes of the backbone; each reads those that it has a use for."""

    embedding: int = Field(32, ge=1, description="Embedding size of every feature.")
    mlp: tuple[int, ...] = Field((200, 80), min_length=1, description="Widths of the final MLP.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of the final MLP.")
    attention: tuple[int, ...] = Field((32, 16), min_length=1)
    """din: widths of the attention MLP."""
    auxiliary_weight: float = Field(0.5, ge=0)
    """dien: weight of the loss on the next interaction."""
    cross_layers: int = Field(3, ge=1, description="dcnv1, dcnv2: cross layers.")
    cin: tuple[int, ...] = Field((50, 50), min_length=1)
    """xdeepfm: rows of each layer of the CIN."""
    interaction_layers: int = Field(3, ge=1)
    """autoint: layers; fignn: rounds of messages."""
    heads: int = Field(1, ge=1, description="autoint, fignn: attention heads.")
    head_size: int = Field(64, ge=1, description="autoint, fignn: width of a head.")
    senet_reduction: int = Field(3, ge=1, description="fibinet: fields per number of the squeeze.")


class GateConfig(Section):
    """How much knowledge counts by how well the model knows the id itself: half / (half + n)."""

    items: float | None = Field(None, gt=0)
    """Training samples n of an item at which its augmented vector counts half; null: it always
    counts in full."""
    users: float | None = Field(None, gt=0)
    """Past interactions n that the model sees of a user at which the user's augmented vector counts
    half; null: it always counts in full."""
