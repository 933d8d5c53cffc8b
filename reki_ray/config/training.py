"""Sections of training and evaluation, and the experimental arms."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reki_ray.config.section import Section

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
]
"""An experimental arm. All but `base` see the same inputs as the knowledge side.

base             conventional model: ids, item attributes, short history
fair_base        base with the user's profile and the full history
history_text     fair_base + encoded profile and history, title and attributes (no LLM)
title_text       fair_base + encoded title and attributes of items alone (no LLM)
reki_i, reki_c   fair_base + LLM knowledge, asked per id or per cluster
reki_c_shuffled  reki_c with the assignment of ids to clusters permuted: the placebo
reki_c_kmeans    reki_c of a run with cluster.method kmeans: the control of the clustering
reki_blend       fair_base + LLM knowledge of the id and of its cluster, blended by activity
"""

KNOWLEDGE_ARMS: frozenset[Arm] = frozenset({"reki_i", "reki_c", "reki_c_kmeans", "reki_blend"})
"""Arms whose augmented vectors come from an LLM and may be published."""


class HeinConfig(Section):
    """Hybrid-expert integration network (REKI, section on HEIN; KAR's HEA)."""

    shared_experts: int = Field(2, ge=1, description="Experts that serve both sides.")
    dedicated_experts: int = Field(6, ge=1, description="Experts of one side, each.")
    hidden: int = Field(128, ge=1, description="Hidden width of an expert.")
    output: int = Field(32, ge=1, description="Length q of an augmented vector.")


class DinConfig(Section):
    """Deep interest network."""

    embedding: int = Field(32, ge=1, description="Embedding size of every feature.")
    attention: tuple[int, ...] = Field((32, 16), description="Widths of the attention MLP.")
    mlp: tuple[int, ...] = Field((200, 80), description="Widths of the final MLP.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of the final MLP.")


class TrainConfig(Section):
    """Joint training of the backbone and HEIN on Ray Train."""

    backbone: Literal["din"] = Field("din", description="Conventional recommendation model.")
    arms: tuple[Arm, ...] = Field(
        ("base", "fair_base", "history_text", "reki_c"), description="Arms to train and compare."
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="One run a seed and arm.")
    din: DinConfig = DinConfig()
    hein: HeinConfig = HeinConfig()
    base_history: int = Field(10, ge=1, description="History of arm base, interactions.")
    history: int = Field(30, ge=1, description="History of every other arm, interactions.")
    batch_size: int = Field(1024, ge=1, description="Samples a step, over all workers.")
    epochs: int = Field(10, ge=1, description="Largest number of passes over the training samples.")
    patience: int = Field(
        2, ge=1, description="Epochs without a better validation AUC after which training stops."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak rate of AdamW.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay of AdamW.")
    warmup_share: float = Field(
        0.05, ge=0, lt=1, description="Share of all steps with a linearly rising rate."
    )
    gradient_clip: float = Field(5.0, gt=0, description="Largest norm of the gradient.")
    id_dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of a batch's items shown without their id, which trains the row of "
        "unknown ids.",
    )
    workers: int = Field(1, ge=1, description="Ray Train workers (DDP).")
    device: Literal["cpu", "cuda"] = Field("cpu", description="gloo on cpu, nccl on cuda.")
    max_failures: int = Field(2, ge=0, description="Restarts of a failed worker group.")

    @model_validator(mode="after")
    def _arms_are_comparable(self) -> TrainConfig:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError("train.arms names an arm twice")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("train.seeds names a seed twice")
        if "fair_base" not in self.arms:
            raise ValueError(
                "train.arms lacks fair_base: differences are reported against it, add it"
            )
        return self


class EvaluateConfig(Section):
    """Metrics on the test split, touched once, after selection on validation."""

    bootstrap: int = Field(1000, ge=100, description="Resamples of users for an interval.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Level of the intervals.")
    cold_item_max: int = Field(
        5, ge=0, description="Items with at most this many training samples count as cold."
    )
    cold_user_max: int = Field(
        5, ge=0, description="Users with at most this long a history at the sample count as cold."
    )
    sparse_user_max: int = Field(
        50, ge=0, description="Users with at most this many interactions count as sparse."
    )
