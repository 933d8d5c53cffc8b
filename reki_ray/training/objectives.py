"""Training objectives: the loss, and the metrics that compare epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn
from typing_extensions import override

from reki_ray.metrics import ranking
from reki_ray.metrics.classification import auc, gauc, logloss

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Validation:
    """Metrics of an epoch on the validation samples, the fields `valid_...` of `Epoch`.

    Args:
        auc: AUC of click models, if it is defined.
        logloss: Loss, nats per sample or list.
        ndcg: NDCG of rerankers.
    """

    auc: float | None
    logloss: float
    ndcg: float | None = None


class Objective(Protocol):
    """Loss and metrics of one kind of model."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Predictions of the model."""
        ...

    def validate(self, labels: Array, scores: Array) -> Validation:
        """Metrics that select an epoch."""
        ...

    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        """Metrics of a finished run; users (N,) are those of the samples or lists."""
        ...


class ClickPrediction(Objective):
    """Binary cross-entropy of single samples; logits and labels (N,)."""

    @override
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)

    @override
    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return torch.sigmoid(logits)

    @override
    def validate(self, labels: Array, scores: Array) -> Validation:
        return Validation(auc(labels, scores), logloss(labels, scores) or 0.0)

    @override
    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        return {
            "auc": auc(labels, scores),
            "logloss": logloss(labels, scores),
            "gauc": gauc(labels, scores, users),
        }


class ListRanking(Objective):
    """Softmax cross-entropy of whole lists; logits and labels (N, K), labels -1 at padding.

        L = - 1 / N sum_n sum_k y_nk / (sum_j y_nj) log softmax_k(logits_n)

    ListNet's loss (Cao et al., ICML 2007) with the labels as target distribution; with binary
    labels it bounds 1 - NDCG (Bruch et al., ICTIR 2019). All rerankers share it, so that they
    differ in their networks alone.
    """

    @override
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        lowest = torch.finfo(torch.float32).min
        log_shares = torch.log_softmax(logits.float().masked_fill(labels < 0, lowest), dim=1)
        target = labels.clamp_min(0.0)
        target = target / target.sum(dim=1, keepdim=True)
        return -(target * log_shares).sum(dim=1).mean()

    @override
    def scores(self, logits: Tensor) -> Tensor:
        """The logits: probabilities would round large ones to the same number."""
        return logits.float()  # numpy has no bfloat16

    @override
    def validate(self, labels: Array, scores: Array) -> Validation:
        loss = self.loss(torch.from_numpy(scores), torch.from_numpy(labels))
        values = ranking.ndcg(ranking.ranked(labels, scores), ranking.HEADLINE)
        return Validation(None, float(loss), ranking.mean_over_lists(values))

    @override
    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        return {**ranking.means_at_cutoffs(labels, scores)}


CLICKS: Final[Objective] = ClickPrediction()
LISTS: Final[Objective] = ListRanking()
