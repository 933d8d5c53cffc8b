"""Reranker and HEIN as one network that trains jointly."""

from __future__ import annotations

from typing_extensions import override

from reki_ray.config import RerankNetworkConfig
from reki_ray.models.base_model import Architecture, EmbeddedModel
from reki_ray.models.features import FeatureSpace
from reki_ray.models.inputs import Output, RerankerSizes, RerankInputs
from reki_ray.models.registry import build_reranker


class RerankArchitecture(Architecture):
    """Architecture of a reranker named `backbone`, for training lists of `list_size`."""

    reranker: RerankNetworkConfig
    list_size: int


class RerankModel(EmbeddedModel):
    """Scores of the candidates of a list for a user, with h_u and h_i beside the embeddings."""

    def __init__(self, architecture: RerankArchitecture, features: FeatureSpace) -> None:
        sizes = RerankerSizes(
            network=architecture.network,
            reranker=architecture.reranker,
            user_fields=len(features.user_fields),
            augmented=architecture.augmented,
            list_size=architecture.list_size,
        )
        super().__init__(
            architecture, features, lambda: build_reranker(architecture.backbone, sizes)
        )

    @override
    def run_network(self, inputs: RerankInputs) -> Output:
        return Output(self.backbone(inputs))
