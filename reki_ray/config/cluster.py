"""The section of stage cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator
from typing_extensions import override

from reki_ray.config.base import OPERATIONAL, Section


class SideClusterConfig(Section):
    """Clustering of one side, users or items."""

    min_cluster_size: int = Field(4, ge=2, description="Smallest cluster, members.")
    min_samples: int = Field(1, ge=1, description="HDBSCAN's min_samples: higher means more noise.")
    max_cluster_size: int = Field(0, ge=0)
    """HDBSCAN's largest cluster before noise joins, members; 0: no limit."""
    clusters: int | None = Field(None, ge=1)
    """Clusters of streakhc and kmeans; null: one per 4 min_cluster_size ids."""


NODES_PER_CLUSTER: Final = 3
"""Nodes that StreaKHC cuts per cluster before it joins them."""


class StreaKhcConfig(Section):
    """StreaKHC's kernel and tree."""

    subsamples: int = Field(200, ge=1, description="Subsamples t of the isolation kernel.")
    subsample_points: int = Field(256, ge=2, le=65_536)
    """Points psi of each subsample: the setting that matters most."""
    max_leaves: int = Field(1024, ge=2)
    """Leaves of the tree; the oldest is evicted when full. Memory is 4 max_leaves t psi bytes, and
    there are at most a third as many clusters."""
    dimensions: int = Field(64, ge=2, description="Dimensions after PCA.")
    seed: int = Field(0, description="Seed of the subsamples.")

    @property
    def most_clusters(self) -> int:
        """Clusters that a tree of this size can distinguish."""
        return max(1, self.max_leaves // NODES_PER_CLUSTER)


class IdEmbeddingsConfig(Section):
    """Embeddings of item ids from a trained model, in addition to the encoded text."""

    model: Path
    """Folder of a trained run, as runs/<name>/train/din-fair_base-0, of this or another workspace
    over the same catalogue."""
    weight: float = Field(0.5, gt=0, lt=1)
    """Share of the embeddings in the cosine of two items."""


class DriftConfig(Section):
    """When `reki update` asks the LLM about a cluster again."""

    moved_share: float = Field(0.2, ge=0, le=1)
    """Share of its members, past and present, that joined or left since its last prompt; for a user
    or item with a prompt of its own, share of new lines in that prompt."""
    centre_shift: float = Field(0.02, ge=0, le=2)
    """1 - cosine of its centre now and at its last prompt."""


class ClusterConfig(Section):
    """Clustering for collective knowledge."""

    method: Literal["hdbscan", "streakhc", "kmeans"] = "hdbscan"
    """hdbscan; streakhc: streaming, as in the REKI paper; kmeans: mini-batch k-means, the
    control."""
    users: SideClusterConfig = SideClusterConfig()
    items: SideClusterConfig = SideClusterConfig()
    dimensions: int = Field(8, ge=2)
    """Dimensions after PCA; density methods fail in high dimension."""
    selection: Literal["leaf", "eom"] = "leaf"
    """HDBSCAN's cluster selection: leaf gives many small, even clusters."""
    hdbscan_engine: Literal["fast_hdbscan", "hdbscan"] = "fast_hdbscan"
    """Package that runs HDBSCAN: fast_hdbscan, or hdbscan, the reference implementation."""
    part_rows: int = Field(50_000, ge=100)
    """Most rows per HDBSCAN run; more are cut into parts, clustered on all nodes, and joined across
    the cuts."""
    min_similarity: float | None = Field(None, gt=-1, lt=1)
    """Clusters are split until every member has at least this cosine to its centre; null: no
    limit."""
    streakhc: StreaKhcConfig = StreaKhcConfig()
    seed: int = Field(0, description="Seed of kmeans.")
    half_life: float = Field(10.0, gt=0)
    """Number of newer interactions that halves an interaction's weight in a user vector."""
    id_embeddings: IdEmbeddingsConfig | None = None
    """Clusters by embeddings of item ids as well; null: by text only."""
    drift: DriftConfig = Field(DriftConfig(), json_schema_extra=OPERATIONAL)

    @override
    def identity(self) -> dict[str, Any]:
        content = super().identity()
        if self.hdbscan_engine == "fast_hdbscan":  # workspaces of earlier releases lack the key
            del content["hdbscan_engine"]
        return content

    @model_validator(mode="after")
    def _tree_is_large_enough(self) -> ClusterConfig:
        most = self.streakhc.most_clusters
        for name in ("users", "items"):
            wanted = getattr(self, name).clusters
            if self.method == "streakhc" and wanted is not None and wanted > most:
                raise ValueError(
                    f"cluster.{name}.clusters is {wanted}, but cluster.streakhc.max_leaves "
                    f"{self.streakhc.max_leaves} allows {most}: raise max_leaves to "
                    f"{NODES_PER_CLUSTER * wanted}"
                )
        return self
