"""One frozen configuration tree, read from one YAML file.

Every field states its meaning and unit. An unknown key is an error, so that a typo never silently
leaves the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from reki_ray.config.base import Section
from reki_ray.config.cluster import (
    NODES_PER_CLUSTER,
    ClusterConfig,
    DriftConfig,
    SideClusterConfig,
    StreaKhcConfig,
)
from reki_ray.config.encode import EncodeConfig
from reki_ray.config.extract import (
    ExtractConfig,
    OpenAiEngine,
    PriceConfig,
    PromptsConfig,
    SamplingConfig,
    ScriptedEngine,
    VllmEngine,
)
from reki_ray.config.files import read_mapping, read_tuned
from reki_ray.config.ingest import (
    ColumnMapping,
    DataConfig,
    Dialect,
    FileSource,
    MovieLens1MSource,
    MovieLens100KSource,
    SplitConfig,
)
from reki_ray.config.keys import describe_problems
from reki_ray.config.network import Backbone, GateConfig, HeinConfig, HeinScaling, NetworkConfig
from reki_ray.config.rerank import RerankConfig, Reranker, RerankNetworkConfig
from reki_ray.config.serve import (
    AdapterSettings,
    EventRule,
    PublishConfig,
    RefreshConfig,
    RetrievalConfig,
    ServeConfig,
    StoreConfig,
)
from reki_ray.config.train import KNOWLEDGE_ARMS, Arm, EvaluateConfig, TrainConfig
from reki_ray.config.tune import Domain, TuneConfig
from reki_ray.errors import ConfigError

__all__ = [
    "KNOWLEDGE_ARMS",
    "NODES_PER_CLUSTER",
    "AdapterSettings",
    "Arm",
    "Backbone",
    "ClusterConfig",
    "ColumnMapping",
    "DataConfig",
    "Dialect",
    "Domain",
    "DriftConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "EventRule",
    "ExtractConfig",
    "FileSource",
    "GateConfig",
    "HeinConfig",
    "HeinScaling",
    "MovieLens1MSource",
    "MovieLens100KSource",
    "NetworkConfig",
    "OpenAiEngine",
    "PriceConfig",
    "PromptsConfig",
    "PublishConfig",
    "RayConfig",
    "RefreshConfig",
    "RekiConfig",
    "RerankConfig",
    "RerankNetworkConfig",
    "Reranker",
    "RetrievalConfig",
    "SamplingConfig",
    "ScriptedEngine",
    "Section",
    "ServeConfig",
    "SideClusterConfig",
    "SplitConfig",
    "StoreConfig",
    "StreaKhcConfig",
    "TrainConfig",
    "TuneConfig",
    "VllmEngine",
    "describe_problems",
    "load_config",
]


class RayConfig(Section):
    """The Ray cluster that does the work."""

    address: str = ""
    """local starts a cluster here; auto or an address joins a running one; empty uses the variable
    RAY_ADDRESS, or local if that is not set."""
    num_cpus: int | None = Field(None, ge=2, description="CPUs of a local cluster; null uses all.")
    object_store_mib: int = Field(1024, ge=128, description="Object store of a local cluster, MiB.")
    max_resources: dict[str, float] = Field({})
    """What the autoscaler of a running cluster can start in all, as {GPU: 4, CPU: 32}: stages are
    sized by it, and do not refuse what is not up yet. Empty takes it from the file of `ray up` on
    the head; set it on Kubernetes."""


class RekiConfig(Section):
    """One run, from raw data to a served model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the run.")
    workspace: str = ""
    """Folder or URL of the run's tables; empty means runs/<name>."""
    data: DataConfig
    split: SplitConfig = SplitConfig()
    prompts: PromptsConfig = PromptsConfig()
    cluster: ClusterConfig = ClusterConfig()
    extract: ExtractConfig = ExtractConfig()
    encode: EncodeConfig = EncodeConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    publish: PublishConfig = PublishConfig()
    store: StoreConfig = StoreConfig()
    serve: ServeConfig = ServeConfig()
    refresh: RefreshConfig = RefreshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _arms_fit_the_mode(self) -> RekiConfig:
        arms: dict[str, set[str]] = {
            "collective": {"reki_c", "reki_c_shuffled"},
            "individual": {"reki_i"},
            "blend": {"reki_blend"},
        }
        if self.cluster.method == "kmeans":
            arms["collective"].add("reki_c_kmeans")
        possible = arms[self.extract.mode]
        wrong = {arm for arm in self.train.arms if arm.startswith("reki")} - possible
        if wrong:
            raise ValueError(
                f"train.arms names {', '.join(sorted(wrong))}, but with extract.mode "
                f"{self.extract.mode} and cluster.method {self.cluster.method} the arms with "
                f"knowledge are {', '.join(sorted(possible))}"
            )
        return self

    @property
    def root(self) -> str:
        """Folder or URL of the workspace."""
        return self.workspace or f"runs/{self.name}"


def load_config(
    path: Path | str,
    *,
    workspace: str | None = None,
    train: Mapping[str, object] | None = None,
    tune: Mapping[str, object] | None = None,
) -> RekiConfig:
    """Read and validate a configuration file, and the tuned settings that it names.

    Args:
        path: YAML file.
        workspace: Overrides the file's workspace.
        train: Overrides keys of its section train.
        tune: Overrides keys of its section tune.

    Raises:
        ConfigError: A file is missing, is not YAML, or has invalid content.
    """
    path = Path(path).absolute()  # for messages
    content = read_mapping(path, todo="Name a readable YAML file with -c; configs/ holds examples.")
    if workspace is not None:
        content["workspace"] = workspace
    for name, keys in (("train", train), ("tune", tune)):
        section = content.get(name) or {}
        if keys and isinstance(section, dict):
            content[name] = {**section, **keys}
    section = content.get("train")
    if isinstance(section, dict) and isinstance(section.get("tuned"), str):
        content["train"] = {**section, "tuned": read_tuned(path.parent / section["tuned"])}
    try:
        return RekiConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            describe_problems(error, RekiConfig),
            where=str(path),
            todo="Correct these keys; docs/reference/config.md lists all of them.",
        ) from error
