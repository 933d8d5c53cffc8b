"""Section of the rerankers: their lists, sizes and rates."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from pydantic import AfterValidator, Field, model_validator

from reki_ray.config.base import Section
from reki_ray.config.network import named_or_imported

RERANKERS: Final = ("dlcm", "prm", "setrank", "mir")


Reranker = Annotated[str, AfterValidator(partial(named_or_imported, "reranker", RERANKERS))]
"""A reranker: one of `RERANKERS`, or the import path of a class that takes
`reki_ray.models.rerankers.RerankInputs`."""


class RerankNetworkConfig(Section):
    """Sizes of a reranker besides train.network; each reads those that it has a use for."""

    hidden: int = Field(64, ge=1, description="Length of a candidate's vector in the list.")
    heads: int = Field(2, ge=1)
    """prm, setrank, mir: attention heads; dlcm: comparisons of a candidate with its list."""
    layers: int = Field(2, ge=1, description="prm, setrank: blocks of attention.")
    feed_forward: int = Field(128, ge=1)
    """prm, setrank: width of the layer between two blocks."""
    inducing: int = Field(8, ge=1, description="setrank: inducing points of a block.")

    @model_validator(mode="after")
    def _heads_share_the_vector(self) -> RerankNetworkConfig:
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden {self.hidden} is not a multiple of heads {self.heads}: each head takes an "
                "equal part of a candidate's vector"
            )
        return self


class RerankConfig(Section):
    """Lists of candidates and the training of rerankers on them; the rest is as in train."""

    list_size: int = Field(10, ge=2, description="Candidates of a list.")
    max_positives: int = Field(4, ge=1)
    """Largest number of a user's positive samples in one list."""
    seed: int = Field(0, ge=0)
    """Of sampled negatives and of ties in the initial order, for all runs."""
    network: RerankNetworkConfig = RerankNetworkConfig()
    batch_size: int = Field(128, ge=1, description="Lists per step, over all workers.")
    epochs: int = Field(50, ge=1, description="Largest number of passes over the training lists.")
    patience: int = Field(3, ge=1)
    """Epochs without a better validation NDCG after which training stops."""
    learning_rate: float = Field(1e-3, gt=0, description="Peak rate of AdamW.")

    @model_validator(mode="after")
    def _lists_have_room_for_negatives(self) -> RerankConfig:
        if self.max_positives >= self.list_size:
            raise ValueError(
                f"max_positives {self.max_positives} leaves no room for a negative in a list of "
                f"list_size {self.list_size}: lower it"
            )
        return self
