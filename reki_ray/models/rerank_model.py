"""Reranker and HEIN as one network that trains jointly."""

from __future__ import annotations

import torch
from torch import Tensor

from reki_ray.config import RerankNetworkConfig
from reki_ray.models.backbones import Output
from reki_ray.models.base_model import Architecture, EmbeddedModel, History, Items
from reki_ray.models.ctr_model import ModelBatch
from reki_ray.models.features import PADDING, FeatureSpace
from reki_ray.models.registry import build_reranker
from reki_ray.models.rerankers import RerankerSizes, RerankInputs


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
            augmented=architecture.hein.output if architecture.representation else 0,
            list_size=architecture.list_size,
        )
        super().__init__(
            architecture, features, lambda: build_reranker(architecture.backbone, sizes)
        )

    def forward(self, batch: ModelBatch) -> Output:
        """Logits (B, K) of B lists, whose `targets` are (B, K); see `output`."""
        h_users, h_items = self.augment(batch.user_knowledge, batch.item_knowledge)
        profile = self.profile(batch.user_attributes, batch.distinct_users)  # (U, F, E)
        logits = self.output(
            items=self.embed_items(batch.item_ids, batch.item_attributes, h_items),
            candidates=batch.targets,
            history=batch.history,
            profile=profile.index_select(0, batch.users),
            augmented_user=h_users,
            augmented_items=None if h_items is None else _rows(h_items, batch.targets),
        )
        misaligned = self.misalignment(batch.item_ids, batch.targets, batch.item_knowledge)
        return Output(logits, misaligned)

    def output(
        self,
        *,
        items: Items,
        candidates: Tensor,
        history: History,
        profile: Tensor,
        augmented_user: Tensor | None,
        augmented_items: Tensor | None,
    ) -> Tensor:
        """Logits (B, K) from item vectors and augmented vectors that are already computed.

        Args:
            candidates: In the initial order, index among R, 0 at padding, (B, K).
            profile: Profile fields (B, F, E).
            augmented_user: h_u (B, q); None without knowledge.
            augmented_items: h_i of the candidates (B, K, q); None without knowledge.
        """
        seen = history.items != PADDING
        if augmented_user is not None and self.gate.users is not None:
            augmented_user = augmented_user * self.user_gate(seen).unsqueeze(-1)
        if augmented_items is not None and self.gate.items is not None:
            gates = _rows(items.gates, candidates)
            augmented_items = augmented_items * gates.unsqueeze(-1)
        logits: Tensor = self.backbone(
            RerankInputs(
                users=profile,
                candidates=_rows(items.vectors, candidates),
                mask=candidates != PADDING,
                history=self.embed_history(items, history),
                history_mask=seen,
                augmented_user=augmented_user,
                augmented_items=augmented_items,
            )
        )
        return logits


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table at an index of any shape; faster than indexing in the backward pass."""
    return torch.index_select(table, 0, index.reshape(-1)).view(*index.shape, *table.shape[1:])
