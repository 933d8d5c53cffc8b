"""One frozen configuration tree, read from one YAML file.

Every field states its meaning and unit; an unknown key is an error, so that a typing
mistake never silently leaves a default in force.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reki_ray.errors import ConfigError

Arm = Literal[
    "base",
    "fair_base",
    "history_text",
    "title_text",
    "reki_i",
    "reki_c",
    "reki_c_shuffled",
]
"""An experimental arm. All but `base` see the same inputs as the knowledge side.

base             conventional model: ids, item attributes, short history
fair_base        base with the user's profile and the full history
history_text     fair_base + encoded profile and history, title and attributes (no LLM)
title_text       fair_base + encoded title and attributes of items alone (no LLM)
reki_i, reki_c   fair_base + LLM knowledge, asked per id or per cluster
reki_c_shuffled  reki_c with the assignment of ids to clusters permuted: the placebo
"""

KNOWLEDGE_ARMS: frozenset[Arm] = frozenset({"reki_i", "reki_c"})
"""Arms whose augmented vectors come from an LLM and may be published."""


class Section(BaseModel):
    """Base of every section: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- ingest ------------------------------------------------------------------------------------


class MovieLens100KSource(Section):
    """MovieLens-100K, fetched from the package registry and verified, or read from a folder."""

    kind: Literal["movielens_100k"] = "movielens_100k"
    path: Path | None = Field(
        None, description="Folder with ml-100k.inter, .item and .user; null fetches them."
    )


class MovieLens1MSource(Section):
    """MovieLens-1M from a folder with ratings.dat (or ratings.dat.gz), movies.dat, users.dat."""

    kind: Literal["movielens_1m"] = "movielens_1m"
    path: Path = Field(description="Folder that holds the three files.")


class ColumnMapping(Section):
    """Names of the columns in the user's own files; null where the file has no such column."""

    user_id: str = Field("user_id", description="User id, in interactions and users.")
    item_id: str = Field("item_id", description="Item id, in interactions and items.")
    timestamp: str = Field("timestamp", description="Time of the interaction.")
    timestamp_unit: Literal["s", "ms", "iso"] = Field(
        "s", description="Seconds or milliseconds since the epoch, or ISO 8601 text."
    )
    rating: str | None = Field("rating", description="Explicit rating.")
    label: str | None = Field(None, description="Ready label, 0 or 1; overrides the rating.")
    title: str = Field("title", description="Item title.")
    text: str | None = Field(None, description="Free item description.")
    item_attributes: tuple[str, ...] = Field((), description="Item columns used as attributes.")
    user_attributes: tuple[str, ...] = Field((), description="User columns used as attributes.")
    list_separator: str = Field("|", description="Separator of several values in one text cell.")


class FileSource(Section):
    """Interactions, items and users in Parquet or CSV files with a column mapping."""

    kind: Literal["parquet", "csv"]
    interactions: str = Field(description="File, folder or glob of the interactions.")
    items: str = Field(description="File, folder or glob of the items.")
    users: str | None = Field(
        None, description="File, folder or glob of the users; null takes them from interactions."
    )
    columns: ColumnMapping = ColumnMapping()


class DataConfig(Section):
    """Where the data come from and what counts as valid."""

    source: Annotated[
        MovieLens100KSource | MovieLens1MSource | FileSource, Field(discriminator="kind")
    ]
    positive_above: float = Field(3.0, description="label = 1 where rating > this value.")
    rating_min: float = Field(1.0, description="Lowest valid rating.")
    rating_max: float = Field(5.0, description="Highest valid rating.")
    earliest: int = Field(0, description="Earliest valid timestamp, seconds since the epoch.")
    latest: int = Field(
        4_102_444_800,
        description="Latest valid timestamp, seconds since the epoch (default: the year 2100); "
        "a value in milliseconds lies beyond it.",
    )
    max_quarantine_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of quarantined rows of a table above which ingest fails.",
    )


class SplitConfig(Section):
    """Leak-free division into training, validation and test samples."""

    method: Literal["user", "time"] = Field(
        "user", description="By user (8:1:1 of users) or by time (8:1:1 of samples)."
    )
    ratios: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="Shares of training, validation and test."
    )
    prompt_history: int = Field(
        30, ge=1, description="At most this many first interactions of a user may enter a prompt."
    )
    prompt_history_share: float = Field(
        0.5, gt=0, lt=1, description="And at most this share of the user's interactions."
    )
    cold_item_share: float = Field(
        0.0, ge=0, lt=1, description="Share of items held out of training, to measure cold items."
    )
    seed: int = Field(0, description="Seed of the division.")

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> SplitConfig:
        if min(self.ratios) <= 0 or abs(sum(self.ratios) - 1.0) > 1e-9:
            raise ValueError(f"ratios must be positive and sum to 1, not {self.ratios}")
        return self


# --- knowledge ---------------------------------------------------------------------------------


class PromptsConfig(Section):
    """Factorization prompts."""

    scenario: str = Field(
        "movies",
        description="movies, books, news, music, products, or the path of your own YAML file.",
    )
    factors: tuple[str, ...] | None = Field(
        None, description="Subset of the scenario's factors to ask for; null asks for all."
    )
    few_shot: bool = Field(
        False, description="Show a worked example first. Small models need it; strong ones do not."
    )
    max_title_chars: int = Field(120, ge=8, description="Longer titles are cut, characters.")
    max_text_chars: int = Field(600, ge=0, description="Longer descriptions are cut, characters.")
    max_history: int = Field(30, ge=1, description="Interactions shown in a user prompt.")
    max_members: int = Field(8, ge=1, description="Members shown in a cluster prompt.")


class SideClusterConfig(Section):
    """Clustering of one side, users or items."""

    min_cluster_size: int = Field(4, ge=2, description="Smallest cluster, members.")
    min_samples: int = Field(1, ge=1, description="HDBSCAN's min_samples: higher means more noise.")
    max_cluster_size: int = Field(
        0, ge=0, description="HDBSCAN's largest cluster before noise joins, members; 0: no limit."
    )


class ClusterConfig(Section):
    """Clustering for collective knowledge."""

    method: Literal["hdbscan"] = Field("hdbscan", description="Clustering algorithm.")
    users: SideClusterConfig = SideClusterConfig()
    items: SideClusterConfig = SideClusterConfig()
    dimensions: int = Field(
        8, ge=2, description="Dimensions after PCA; density methods fail in high dimension."
    )
    selection: Literal["leaf", "eom"] = Field(
        "leaf", description="HDBSCAN's cluster selection: leaf gives many small, even clusters."
    )
    half_life: float = Field(
        10.0,
        gt=0,
        description="Number of newer interactions that halves an interaction's weight in a user "
        "vector.",
    )


class VllmEngine(Section):
    """vLLM inside Ray Data's batch inference processor."""

    kind: Literal["vllm"] = "vllm"
    device: Literal["cpu", "gpu"] = Field("cpu", description="Preset of engine settings.")
    model: str = Field(
        "packaged:smollm2-135m-instruct",
        description="packaged:<name>, a local folder, or a Hugging Face id.",
    )
    revision: str = Field("main", description="Revision of a Hugging Face id.")
    max_model_len: int = Field(2048, ge=128, description="Longest prompt + answer, tokens.")
    engine_kwargs: dict[str, Any] = Field(
        {}, description="Passed to vLLM unrenamed, over the preset: tensor_parallel_size, ..."
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        description="OpenMP threads of the CPU engine; 0 takes all cores but one, at least 1.",
    )
    env: dict[str, str] = Field({}, description="Environment of the engine, over the preset.")


class ScriptedEngine(Section):
    """Answers computed from the prompt without a model, for tests and dry runs."""

    kind: Literal["scripted"] = "scripted"
    model: str = Field("scripted", description="Model name written into the ledger.")
    revision: str = Field("1", description="Revision written into the ledger.")
    fail_containing: str = Field(
        "", description="Prompts with this text fail; empty lets every prompt succeed."
    )


class SamplingConfig(Section):
    """Sampling of the LLM's answers."""

    max_tokens: int = Field(160, ge=1, description="Longest answer, tokens.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    repetition_penalty: float = Field(
        1.0, gt=0, description="Above 1 discourages the loops of small models."
    )
    seed: int = Field(0, description="Seed of sampling.")
    stop: tuple[str, ...] = Field((), description="Texts that end an answer.")
    constrain: bool = Field(
        False,
        description="Force one short line a factor by structured output (vLLM). Small models need "
        "it; strong ones keep the form by themselves.",
    )


class ExtractConfig(Section):
    """Asking the LLM."""

    mode: Literal["collective", "individual"] = Field(
        "collective", description="One prompt a cluster (REKI-C) or one an id (REKI-I)."
    )
    engine: Annotated[VllmEngine | ScriptedEngine, Field(discriminator="kind")] = VllmEngine()
    sampling: SamplingConfig = SamplingConfig()
    batch_size: int = Field(32, ge=1, description="Prompts a call of the engine.")
    unit_rows: int = Field(
        64, ge=1, description="Prompts a work unit: what is finished is saved unit by unit."
    )
    concurrency: int = Field(1, ge=1, description="Engine replicas.")
    max_dead_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of prompts without an answer above which extract fails.",
    )


class EncodeConfig(Section):
    """Knowledge text to representation r."""

    model: str = Field(
        "packaged:all-minilm-l6-v2",
        description="packaged:<name>, a local folder, or a sentence-transformers id.",
    )
    revision: str = Field("main", description="Revision of a Hugging Face id.")
    batch_size: int = Field(64, ge=1, description="Texts a forward pass.")
    concurrency: int = Field(1, ge=1, description="Encoder actors.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Device of an encoder actor.")


# --- training ----------------------------------------------------------------------------------


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


class PublishConfig(Section):
    """What is prestored."""

    arm: Arm | Literal["auto"] = Field(
        "auto", description="Arm to serve; auto takes the knowledge arm best on validation."
    )
    history: int = Field(50, ge=1, description="Latest interactions kept a user for the scorer.")


class ServeConfig(Section):
    """The composed graph."""

    app: str = Field(
        "deployments.graph:build_app", description="Import path of the application builder."
    )
    host: str = Field("127.0.0.1", description="Address of the HTTP proxy.")
    port: int = Field(
        8000, ge=0, le=65535, description="Port of the HTTP proxy; 0 takes a free one."
    )
    gateway_replicas: int = Field(1, ge=1, description="Replicas of the gateway.")
    lookup_replicas: int = Field(1, ge=1, description="Replicas of the lookup.")
    scorer_replicas: int = Field(1, ge=1, description="Replicas of the scorer.")
    max_candidates: int = Field(1000, ge=1, description="Candidates a request may name.")
    max_history: int = Field(200, ge=1, description="Interactions a request may carry.")
    timeout_seconds: float = Field(2.0, gt=0, description="Time budget of a request, seconds.")
    measure_candidates: int = Field(100, ge=1, description="Candidates a measured request.")
    measure_requests: int = Field(200, ge=10, description="Measured requests in stage serve.")


class RayConfig(Section):
    """The Ray cluster that does the work."""

    address: str = Field(
        "",
        description="local starts one here; auto or an address joins a running one; empty takes "
        "the variable RAY_ADDRESS, and local where that is not set.",
    )
    num_cpus: int | None = Field(None, ge=2, description="CPUs of a local cluster; null takes all.")
    object_store_mib: int = Field(1024, ge=128, description="Object store of a local cluster, MiB.")


class RekiConfig(Section):
    """One run, from raw data to a served model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the run.")
    workspace: str = Field(
        "", description="Folder or URL of the run's tables; empty means runs/<name>."
    )
    data: DataConfig
    split: SplitConfig = SplitConfig()
    prompts: PromptsConfig = PromptsConfig()
    cluster: ClusterConfig = ClusterConfig()
    extract: ExtractConfig = ExtractConfig()
    encode: EncodeConfig = EncodeConfig()
    train: TrainConfig = TrainConfig()
    publish: PublishConfig = PublishConfig()
    serve: ServeConfig = ServeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _arms_fit_the_mode(self) -> RekiConfig:
        asked = "reki_c" if self.extract.mode == "collective" else "reki_i"
        wrong = {arm for arm in self.train.arms if arm.startswith("reki")} - {
            asked,
            f"{asked}_shuffled",
        }
        if wrong:
            raise ValueError(
                f"train.arms names {', '.join(sorted(wrong))}, but extract.mode is "
                f"{self.extract.mode}, whose arm is {asked}"
            )
        return self

    @property
    def root(self) -> str:
        """Folder or URL of the workspace."""
        return self.workspace or f"runs/{self.name}"


def load_config(path: Path | str, *, workspace: str | None = None) -> RekiConfig:
    """Read and check a configuration file.

    Args:
        path: YAML file.
        workspace: Overrides the file's workspace.

    Raises:
        ConfigError: The file is missing, is no YAML, or breaks the tree's rules.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration: {error}",
            where=str(path),
            todo="Name a readable YAML file with -c; configs/ holds examples.",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the configuration is no valid YAML: {error}",
            where=str(path),
            todo="Correct the line that the message names.",
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            "the configuration is no mapping",
            where=str(path),
            todo="Write `key: value` lines; configs/ holds examples.",
        )
    if workspace is not None:
        content["workspace"] = workspace
    try:
        return RekiConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            describe_problems(error),
            where=str(path),
            todo="Correct these keys; docs/configuration.md lists all of them.",
        ) from error


def describe_problems(error: ValidationError) -> str:
    """What is wrong with a file that broke a model's rules: each key and its problem."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
        for problem in error.errors()
    )
