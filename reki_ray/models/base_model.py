"""Embeddings and HEIN, shared by all networks over users, items and knowledge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from reki_ray.config import GateConfig, HeinConfig, NetworkConfig, Section
from reki_ray.models.embeddings import AttributeEmbedding, ItemEmbedding, row_embedding
from reki_ray.models.features import FIRST_OWN_ROW, GAP_ROWS, PADDING, UNKNOWN, FeatureSpace
from reki_ray.models.hein import Adaptor
from reki_ray.models.inputs import Output, RerankInputs
from reki_ray.models.knowledge_input import KnowledgeInput
from reki_ray.models.registry import build_adaptor
from reki_ray.schema import WHOLE_ANSWER, Side

TEMPERATURE: Final = 0.1
MOST_ITEMS: Final = 512
"""Most items of a batch that are compared with each other: the cost grows with their square."""

_ROUND_ROWS = 256
"""HEIN's rows in bfloat16 are rounded up to a multiple of this."""


class Architecture(Section):
    """All that determines the network's parameters besides the vocabularies.

    `representation` is the length d of r, of one factor; 0 builds the network without knowledge.
    Representations by factor are side by side, in the order of `user_factors` and `item_factors`.
    """

    backbone: str
    network: NetworkConfig
    hein: HeinConfig
    gate: GateConfig
    representation: int
    user_factors: tuple[str, ...] = (WHOLE_ANSWER,)
    item_factors: tuple[str, ...] = (WHOLE_ANSWER,)
    id_dropout: float

    def factors(self, side: Side) -> tuple[str, ...]:
        """Factors of one side's representations, in order."""
        return self.user_factors if side == "users" else self.item_factors

    @property
    def augmented(self) -> int:
        """Length q of an augmented vector; 0 without knowledge."""
        return self.hein.output if self.representation else 0

    def width(self, side: Side) -> int:
        """Length K d of an id's representation."""
        return len(self.factors(side)) * self.representation


@dataclass(frozen=True)
class Items:
    """Vectors (R, E) of distinct items, row 0 padding, and the weights (R,) of their h_i."""

    vectors: Tensor
    gates: Tensor


class History(NamedTuple):
    """Past interactions of B samples, oldest first, 0 at padding.

    Attributes:
        items: Index among R distinct items (B, L).
        ratings: Rows of their ratings (B, L).
        gaps: Rows of their time gaps to the latest one (B, L).
    """

    items: Tensor
    ratings: Tensor
    gaps: Tensor


@dataclass(frozen=True)
class KnowledgeVectors:
    """Distinct representations of one side for N users or items.

    Members of a cluster share one, so V is far below N and HEIN costs little.

    Args:
        vectors: Unit representations (V, K d) of K factors.
        index: Row of each user or item (N,).
    """

    vectors: Tensor
    index: Tensor


@dataclass(frozen=True)
class ModelBatch:
    """B samples, or B lists of K items, over R distinct items and U distinct users.

    Whatever depends on an id alone is computed once per batch, not per sample.

    Args:
        item_ids: Rows of the item ids (R,); entry 0 is padding.
        item_attributes: Rows (R, width) by attribute.
        targets: Item to score, index among R, (B,); of lists (B, K), 0 at padding.
        user_attributes: Rows (U, width) by attribute.
        distinct_users: Number U of distinct users.
        users: Index among U, (B,).
        user_knowledge: Representations r_u of the samples; None without knowledge.
        item_knowledge: Representations r_i of the R items, of past items only if the model enriches
            them; None without knowledge.
    """

    item_ids: Tensor
    item_attributes: Mapping[str, Tensor]
    targets: Tensor
    history: History
    user_attributes: Mapping[str, Tensor]
    distinct_users: int
    users: Tensor
    user_knowledge: KnowledgeVectors | None
    item_knowledge: KnowledgeVectors | None


class Alignment(nn.Module):
    """Contrastive loss between knowledge and id embeddings of the same items.

        L = - mean_i log softmax_j(cos(A z_i, e_j) / 0.1)[i]

    z is the output of the shared experts for an item, e the embedding of its id. Dedicated experts
    are not aligned, as in DaRec and PAD. No gradient flows into e, so that clicks alone shape it.

    Example::

        alignment = Alignment(output=8, embedding=16)
        loss = alignment(torch.randn(5, 8), torch.randn(5, 16))
    """

    def __init__(self, output: int, embedding: int) -> None:
        super().__init__()
        self.projection = nn.Linear(output, embedding, bias=False)

    def forward(self, shared: Tensor, embeddings: Tensor) -> Tensor:
        """Loss, a scalar, of z (N, q) and e (N, E) of N distinct items."""
        z = nn.functional.normalize(self.projection(shared), dim=1)
        e = nn.functional.normalize(embeddings.detach(), dim=1)
        same = torch.arange(len(z), device=z.device)
        return nn.functional.cross_entropy(z @ e.T / TEMPERATURE, same)


class EmbeddedModel(nn.Module):
    """Item, rating, profile and augmented vectors, for a network that a subclass puts on top.

    Representations have length 1; `KnowledgeInput` scales and mixes them before HEIN.

    With a gate, h_i counts half / (half + n) for an item of n training samples, and h_u the same
    for n past interactions, so that knowledge counts most for ids with little data. Id dropout
    shows known items as unknown ones, with n = 0, which trains the network for that case.

    Args:
        network: Builds the network on top. Called before HEIN is built, so that a seed gives it
            the same start as without knowledge.
    """

    seen: Tensor

    def __init__(
        self, architecture: Architecture, features: FeatureSpace, network: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        size = architecture.network.embedding
        item_fields = {name: field.rows for name, field in features.item_fields.items()}
        user_fields = {name: field.rows for name, field in features.user_fields.items()}
        id_dropout = architecture.id_dropout
        self.items = ItemEmbedding(features.item_rows, item_fields, size, id_dropout)
        # Both are added to the item's vector. Without missing ratings their row stays zero.
        self.ratings = row_embedding(features.rating_rows, size, UNKNOWN)
        self.gaps = row_embedding(GAP_ROWS, size)
        self.profile = AttributeEmbedding(user_fields, size)
        self.backbone = network()
        self.hein: Adaptor | None = None
        if architecture.representation:
            d, hein = architecture.representation, architecture.hein
            self.user_reader, self.item_reader = (
                KnowledgeInput(len(factors), d, scaling=hein.scaling, components=hein.components)
                for factors in (architecture.user_factors, architecture.item_factors)
            )
            self.hein = build_adaptor(self.item_reader.output, hein)
            if hein.enrich_items:
                self.enrichment = nn.Linear(hein.output, size, bias=False)
            self.alignment_weight = hein.alignment_weight
            if hein.alignment_weight:
                self.alignment = Alignment(hein.output, size)
        self.enriches = bool(architecture.representation) and architecture.hein.enrich_items
        self.gate = architecture.gate
        self.reduced = False
        """Whether HEIN multiplies in bfloat16 in training; other layers are too small to gain."""
        counts = [0] * FIRST_OWN_ROW + list(features.item_counts)
        self.register_buffer("seen", torch.tensor(counts, dtype=torch.float32), persistent=False)

    def forward(self, batch: ModelBatch) -> Output:
        """Logits (B,), of lists (B, K), and the loss that the network adds in training."""
        h_users, h_items = self.augment(batch.user_knowledge, batch.item_knowledge)
        profile = self.profile(batch.user_attributes, batch.distinct_users)  # (U, F, E)
        output = self.output(
            items=self.embed_items(batch.item_ids, batch.item_attributes, h_items),
            targets=batch.targets,
            history=batch.history,
            profile=profile.index_select(0, batch.users),
            h_users=h_users,
            h_items=None if h_items is None else _rows(h_items, batch.targets),
        )
        misaligned = self.misalignment(batch.item_ids, batch.targets, batch.item_knowledge)
        losses = [loss for loss in (output.auxiliary, misaligned) if loss is not None]
        return Output(output.logits, torch.stack(losses).sum() if losses else None)

    def output(
        self,
        *,
        items: Items,
        targets: Tensor,
        history: History,
        profile: Tensor,
        h_users: Tensor | None,
        h_items: Tensor | None,
    ) -> Output:
        """Output from item vectors and augmented vectors that are already computed.

        Args:
            targets: Items to score, index among R, (B,); of lists (B, K), 0 at padding.
            profile: Profile fields (B, F, E).
            h_users: h_u (B, q); None without knowledge.
            h_items: h_i of the targets (B, q), of lists (B, K, q); None without knowledge.
        """
        seen = history.items != PADDING
        if h_users is not None and self.gate.users is not None:
            h_users = h_users * self.user_gate(seen).unsqueeze(-1)
        if h_items is not None and self.gate.items is not None:
            h_items = h_items * _rows(items.gates, targets).unsqueeze(-1)
        return self.run_network(
            RerankInputs(
                users=profile,
                candidates=_rows(items.vectors, targets),
                mask=targets != PADDING,
                history=self.embed_history(items, history),
                history_mask=seen,
                augmented_user=h_users,
                augmented_items=h_items,
            )
        )

    def run_network(self, inputs: RerankInputs) -> Output:
        """Output of the network on top; the candidates of samples are (B, E) and (B, q)."""
        raise NotImplementedError

    def knowledge_parameters(self) -> list[nn.Parameter]:
        """Parameters that exist for representations alone; none without knowledge."""
        if self.hein is None:
            return []
        parts: list[nn.Module] = [self.hein, self.user_reader, self.item_reader]
        if self.enriches:
            parts.append(self.enrichment)
        return [parameter for part in parts for parameter in part.parameters()]

    def augment_users(self, r: Tensor) -> Tensor:
        """Augmented vectors h_u (N, q) of unit representations r_u (N, K d)."""
        assert self.hein is not None
        return self._augment(self.hein.users, self.user_reader(r))

    def augment_items(self, r: Tensor) -> Tensor:
        """Augmented vectors h_i (N, q) of unit representations r_i (N, K d)."""
        assert self.hein is not None
        return self._augment(self.hein.items, self.item_reader(r))

    def augment(
        self, users: KnowledgeVectors | None, items: KnowledgeVectors | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Augmented vectors h_u and h_i (N, q) of both sides; None in a model without knowledge."""
        if self.hein is None:
            return None, None
        if users is None or items is None:
            raise ValueError("a model with knowledge needs representations of both sides")
        h_users = self.augment_users(users.vectors).index_select(0, users.index)
        h_items = self.augment_items(items.vectors).index_select(0, items.index)
        return h_users, h_items

    def embed_items(
        self, ids: Tensor, attributes: Mapping[str, Tensor], augmented: Tensor | None
    ) -> Items:
        """Vectors of R items.

        Args:
            ids: Rows of the item ids (R,), 0 at padding.
            attributes: Rows (R, width) by attribute.
            augmented: h_i (R, q); only read if items are enriched.
        """
        shown = self.items.drop(ids)
        vectors = self.items(shown, attributes)
        gates = _gate(self.gate.items, self.seen[shown])
        if self.enriches:
            assert augmented is not None
            there = gates * (ids != PADDING)
            vectors = vectors + there.unsqueeze(-1) * self.enrichment(augmented)
        return Items(vectors, gates)

    def embed_history(self, items: Items, history: History) -> Tensor:
        """Vectors (B, L, E) of past interactions among R distinct items, zeros at padding."""
        rows = _rows(items.vectors, history.items)
        # Row 0 of each embedding is zero.
        past: Tensor = rows + self.ratings(history.ratings) + self.gaps(history.gaps)
        return past

    def misalignment(
        self, ids: Tensor, items: Tensor, knowledge: KnowledgeVectors | None
    ) -> Tensor | None:
        """Weighted alignment loss of the shared experts in training, if configured.

        Args:
            items: Index among R of the items to align, of any shape, repeated or not; padding is
                ignored.
        """
        if not self.training or self.hein is None or not self.alignment_weight:
            return None
        assert knowledge is not None
        known = torch.unique(items)
        known = known[ids[known] >= FIRST_OWN_ROW]
        if not len(known):
            return None
        if len(known) > MOST_ITEMS:  # ascending: the first ones would always be the same
            known = known[torch.randperm(len(known), device=known.device)[:MOST_ITEMS]]
        r = self.item_reader(knowledge.vectors[knowledge.index[known]])
        loss: Tensor = self.alignment(self.hein.shared_items(r), self.items.ids(ids[known]))
        return self.alignment_weight * loss

    def user_gate(self, mask: Tensor) -> Tensor:
        """Weight (B,) of h_u by the number of real interactions, mask (B, L)."""
        return _gate(self.gate.users, mask.sum(dim=1).to(self.seen.dtype))

    def _augment(self, side: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
        if not (self.reduced and self.training):
            return side(r)
        # Cast once for all experts. Rows are padded because the number of distinct representations
        # varies, and every new shape compiles a new kernel while the network waits.
        rows = len(r) + -len(r) % _ROUND_ROWS
        padded = r.new_zeros(rows, r.shape[1], dtype=torch.bfloat16)
        padded[: len(r)] = r
        with torch.autocast(r.device.type, torch.bfloat16):
            return side(padded)[: len(r)].float()


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table at an index of any shape; faster than indexing in the backward pass."""
    return table.index_select(0, index.reshape(-1)).view(*index.shape, *table.shape[1:])


def _gate(half: float | None, n: Tensor) -> Tensor:
    return torch.ones_like(n) if half is None else half / (half + n)
