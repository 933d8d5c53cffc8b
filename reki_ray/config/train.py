"""Sections of training and evaluation, and the experimental arms."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from reki_ray.config.base import OPERATIONAL, Section
from reki_ray.config.keys import check_keys, describe_problems, flat, leaves, merged
from reki_ray.config.network import (
    BACKBONES,
    WITH_HISTORY,
    Backbone,
    GateConfig,
    HeinConfig,
    NetworkConfig,
)
from reki_ray.config.rerank import RERANKERS, RerankConfig, Reranker

Arm = Literal[
    "base",
    "fair_base",
    "history_text",
    "title_text",
    "reki_i",
    "reki_c",
    "reki_c_shuffled",
    "reki_c_kmeans",
    "reki_blend",
    "imported",
]
"""An experimental arm. All but `base` see the same inputs as the knowledge side.

base             conventional model: ids, item attributes, short history
fair_base        base with the user's profile and the full history
history_text     fair_base + encoded profile and history, title and attributes (no LLM)
title_text       fair_base + encoded title and attributes of items alone (no LLM)
reki_i, reki_c   fair_base + LLM knowledge, extracted per id or per cluster
reki_c_shuffled  reki_c with the assignment of ids to clusters permuted: the placebo
reki_c_kmeans    reki_c of a run with cluster.method kmeans: the control of the clustering
reki_blend       fair_base + LLM knowledge of the id and of its cluster, blended by activity
imported         fair_base + knowledge of items alone, of a run that has it from elsewhere
                 (`reki import-knowledge`): as title_text, so that the two compare
"""

Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of HEIN in training; auto: bfloat16 on a CPU with units for it."""

KNOWLEDGE_ARMS: frozenset[Arm] = frozenset(
    {"reki_i", "reki_c", "reki_c_kmeans", "reki_blend", "imported"}
)
"""Arms whose augmented vectors come from an LLM and may be published."""

COMMON: Final = frozenset(
    {
        *("backbones", "arms", "rerankers", "rerank", "seeds", "tuned", "buckets"),
        *("data", "max_held_samples", "shuffle_buffer"),
        *("workers", "device", "max_failures", "mlflow"),
    }
)
"""Keys of `TrainConfig` that hold for the whole stage: `tuned` cannot set them."""


class TrainConfig(Section):
    """Joint training of the backbone and HEIN on Ray Train."""

    backbones: tuple[Backbone, ...] = Field(
        ("din",),
        min_length=1,
        description="Conventional models, each trained with every arm: "
        f"{', '.join(BACKBONES)}, or a class of yours as package.module:Name.",
    )
    arms: tuple[Arm, ...] = ("base", "fair_base", "history_text", "reki_c")
    """Arms to train and compare."""
    rerankers: tuple[Reranker, ...] = Field(
        (),
        description="Rerankers, each trained with every arm on lists of candidates: "
        f"{', '.join(RERANKERS)}, or a class of yours as package.module:Name; none by default.",
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="One run per seed and arm.")
    tuned: dict[Backbone, dict[str, Any]] = Field({})
    """Keys of this section for one backbone, as {din: {history: 50}}; or the path of a file of
    `reki tune`, or of a folder of such files, relative to this file."""
    network: NetworkConfig = NetworkConfig()
    hein: HeinConfig = HeinConfig()
    gate: GateConfig = GateConfig()
    rerank: RerankConfig = RerankConfig()
    base_history: int = Field(10, ge=1, description="History of arm base, interactions.")
    history: int = Field(30, ge=1, description="History of every other arm, interactions.")
    buckets: dict[str, Annotated[int, Field(ge=2)]] = Field({})
    """Attributes that are numbers, as {price: 20}, and into how many quantile buckets of the
    training data they go; all others are categories."""
    batch_size: int = Field(1024, ge=1, description="Samples per step, over all workers.")
    epochs: int = Field(10, ge=1, description="Largest number of passes over the training samples.")
    patience: int = Field(2, ge=1)
    """Epochs without a better validation AUC after which training stops."""
    learning_rate: float = Field(1e-3, gt=0, description="Peak rate of AdamW.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay of AdamW.")
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of all steps with a linearly rising rate."""
    gradient_clip: float = Field(5.0, gt=0, description="Largest norm of the gradient.")
    id_dropout: float = Field(0.05, ge=0, lt=1)
    """Share of a batch's items shown without their id, which trains the row of unknown ids and,
    with a gate, what their knowledge is worth in its place."""
    data: Literal["auto", "tensors", "stream"] = "auto"
    """Training samples: tensors holds them in memory; stream reads them from their Parquet files in
    every epoch, in memory that does not grow with them; auto holds at most max_held_samples and
    streams more."""
    max_held_samples: int = Field(10_000_000, ge=0)
    """auto: most training samples that are held, at 28 bytes each in Ray's object store and some
    200 while they are read."""
    shuffle_buffer: int = Field(1_048_576, ge=1)
    """stream: samples of a worker among which the next batch is drawn, at 16 bytes each."""
    prefetch: int = Field(2, ge=0, json_schema_extra=OPERATIONAL)
    """Batches built ahead in the background; 0 builds each when it is needed."""
    precision: Precision = "float32"
    """Of HEIN's products of matrices in training; all else is float32, validation too. auto takes
    bfloat16 on a CPU that multiplies it in hardware (AMX, AVX512-BF16), where it is about twice as
    fast, and float32 elsewhere: other CPUs emulate it, several times as slow."""
    compile: bool = False
    """Compile the training step with torch.compile, which needs a C++ compiler and half a minute a
    run; for long epochs."""
    workers: int = Field(1, ge=1, description="Ray Train workers (DDP).")
    device: Literal["cpu", "cuda"] = Field("cpu", description="gloo on cpu, nccl on cuda.")
    max_failures: int = Field(2, ge=0, description="Restarts of a failed worker group.")
    mlflow: str | None = Field(None, min_length=1, json_schema_extra=OPERATIONAL)
    """Tracking URI of an MLflow server, or sqlite:///FILE, that logs every trained run; null:
    none."""

    def for_reranking(self) -> TrainConfig:
        """Settings of a reranker's training: with the rates of section `rerank`."""
        rates = ("batch_size", "epochs", "patience", "learning_rate")
        return self.model_copy(update={name: getattr(self.rerank, name) for name in rates})

    @model_validator(mode="after")
    def _augmented_vectors_are_fields(self) -> TrainConfig:
        multiplying = [
            name
            for name in self.backbones
            if name in BACKBONES and name not in WITH_HISTORY and name not in self.tuned
        ]
        if multiplying and self.hein.output != self.network.embedding:
            raise ValueError(
                f"train.hein.output is {self.hein.output} and train.network.embedding "
                f"{self.network.embedding}, but {multiplying[0]} multiplies augmented vectors with "
                "embeddings: give both the same length"
            )
        return self

    @model_validator(mode="after")
    def _lists_are_made_of_held_samples(self) -> TrainConfig:
        if self.rerankers and self.data == "stream":
            raise ValueError(
                "train.rerankers need lists, which are made of samples that are held, but "
                "train.data is stream: set it to tensors, or train the rerankers in a run of their "
                "own"
            )
        return self

    @model_validator(mode="after")
    def _arms_are_comparable(self) -> TrainConfig:
        for name in ("arms", "backbones", "rerankers", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"train.{name} has duplicates: {values}")
        if "fair_base" not in self.arms:
            raise ValueError(
                "train.arms lacks fair_base: differences are reported against it, add it"
            )
        return self

    @model_validator(mode="after")
    def _tuned_settings_are_valid(self) -> TrainConfig:
        for name, settings in self.tuned.items():
            check_keys(flat(settings), tunable_keys(), where=f"train.tuned.{name}")
            try:
                self.of(name)
            except ValidationError as error:
                problems = describe_problems(error, TrainConfig, "its settings")
                raise ValueError(f"train.tuned.{name}: {problems}") from error
        return self

    def of(self, backbone: Backbone) -> TrainConfig:
        """Settings of one backbone's runs, with its entry of `tuned`."""
        if backbone not in self.tuned:
            return self
        own = {"backbones": (backbone,), "tuned": {}}
        tree = merged(self.model_dump(exclude={"tuned"}), self.tuned[backbone])
        return TrainConfig.model_validate({**tree, **own})


def tunable_keys() -> tuple[str, ...]:
    """Dotted keys of `TrainConfig` that `tuned` may set per backbone."""
    return tuple(key for key in leaves(TrainConfig) if key.partition(".")[0] not in COMMON)


class EvaluateConfig(Section):
    """Metrics on the test split, touched once, after selection on validation."""

    bootstrap: int = Field(1000, ge=100, description="Resamples of users and items.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Level of the intervals.")
    cold_item_max: int = Field(5, ge=0)
    """Items with at most this many training samples count as cold."""
    cold_user_max: int = Field(5, ge=0)
    """Users with at most this long a history at the sample count as cold."""
    new_user_history: int | None = Field(3, ge=1)
    """Also score all test samples with only so many of the latest interactions: slice new_users,
    the value of an arm for new users. Texts about users stay. null: not measured."""
    sparse_user_max: int = Field(50, ge=0)
    """Users with at most this many interactions count as sparse."""
