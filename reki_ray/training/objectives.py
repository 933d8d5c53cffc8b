"""What a model is trained for: its loss, and what makes one epoch better than another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn

from reki_ray.metrics import ranking
from reki_ray.metrics.classification import auc, gauc, logloss

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Validation:
    """Figures of an epoch on the validation samples, the fields `valid_...` of `Epoch`.

    Args:
        auc: AUC; None where it is not defined or not what the model is trained for.
        logloss: Loss, nats a sample or list.
        ndcg: NDCG of lists; None for models of clicks.
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
        """What the model predicts."""
        ...

    def validate(self, labels: Array, scores: Array) -> Validation:
        """Figures that select an epoch."""
        ...

    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        """Metrics of a finished run; users (N,) are those of the samples or lists."""
        ...


class ClickPrediction:
    """Binary cross-entropy of single samples; logits and labels (N,)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Objective`."""
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return torch.sigmoid(logits)

    def validate(self, labels: Array, scores: Array) -> Validation:
        """See `Objective`."""
        return Validation(auc(labels, scores), logloss(labels, scores) or 0.0)

    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        """See `Objective`."""
        return {
            "auc": auc(labels, scores),
            "logloss": logloss(labels, scores),
            "gauc": gauc(labels, scores, users),
        }


class ListRanking:
    """Softmax cross-entropy of whole lists; logits and labels (N, K), labels -1 at padding.

        L = - 1 / N sum_n sum_k y_nk / (sum_j y_nj) log softmax_k(logits_n)

    ListNet's loss (Cao et al., ICML 2007) with the labels as the wanted distribution; with
    binary labels it bounds 1 - NDCG (Bruch et al., ICTIR 2019). All rerankers have it, so that
    they differ in their networks alone.
    """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Objective`."""
        lowest = torch.finfo(torch.float32).min
        log_shares = torch.log_softmax(logits.float().masked_fill(labels < 0, lowest), dim=1)
        wanted = labels.clamp_min(0.0)
        wanted = wanted / wanted.sum(dim=1, keepdim=True)
        return -(wanted * log_shares).sum(dim=1).mean()

    def scores(self, logits: Tensor) -> Tensor:
        """The logits: a probability would round large ones to the same number."""
        return logits.float()  # numpy has no bfloat16

    def validate(self, labels: Array, scores: Array) -> Validation:
        """See `Objective`."""
        loss = self.loss(torch.from_numpy(scores), torch.from_numpy(labels))
        values = ranking.ndcg(ranking.ranked(labels, scores), ranking.HEADLINE)
        return Validation(None, float(loss), ranking.mean_over_lists(values))

    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        """See `Objective`."""
        found = ranking.at_cutoffs(ranking.ranked(labels, scores))
        return {
            metric: {k: ranking.mean_over_lists(values) for k, values in by_cutoff.items()}
            for metric, by_cutoff in found.items()
        }


CLICKS: Final[Objective] = ClickPrediction()
LISTS: Final[Objective] = ListRanking()
