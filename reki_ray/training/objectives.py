"""Training objectives: the loss, and the metrics that compare epochs."""

from __future__ import annotations

from typing import Any, Final

import numpy.typing as npt
import torch
from torch import Tensor, nn

from reki_ray.metrics import ranking
from reki_ray.metrics.classification import auc, gauc, logloss

Array = npt.NDArray[Any]


class ClickPrediction:
    """Binary cross-entropy of single samples; logits and labels (N,)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return torch.sigmoid(logits)

    def validate(self, labels: Array, scores: Array) -> dict[str, Any]:
        """Fields `valid_...` of `Epoch`, which select an epoch."""
        loss = logloss(labels, scores) or 0.0
        return {"valid_auc": auc(labels, scores), "valid_logloss": loss}

    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        """Metrics of a finished run; users (N,) are those of the samples or lists."""
        return {
            "auc": auc(labels, scores),
            "logloss": logloss(labels, scores),
            "gauc": gauc(labels, scores, users),
        }


class ListRanking:
    """Softmax cross-entropy of whole lists; logits and labels (N, K), labels -1 at padding.

        L = - 1 / N sum_n sum_k y_nk / (sum_j y_nj) log softmax_k(logits_n)

    ListNet's loss (Cao et al., ICML 2007) with the labels as target distribution; with binary
    labels it bounds 1 - NDCG (Bruch et al., ICTIR 2019). All rerankers share it, so that they
    differ in their networks alone.
    """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        lowest = torch.finfo(torch.float32).min
        log_shares = torch.log_softmax(logits.float().masked_fill(labels < 0, lowest), dim=1)
        target = labels.clamp_min(0.0)
        target = target / target.sum(dim=1, keepdim=True)
        return -(target * log_shares).sum(dim=1).mean()

    def scores(self, logits: Tensor) -> Tensor:
        """The logits: probabilities would round large ones to the same number."""
        return logits.float()  # numpy has no bfloat16

    def validate(self, labels: Array, scores: Array) -> dict[str, Any]:
        """Fields `valid_...` of `Epoch`, which select an epoch."""
        loss = self.loss(torch.from_numpy(scores), torch.from_numpy(labels))
        values = ranking.ndcg(ranking.ranked(labels, scores), ranking.HEADLINE)
        ndcg = ranking.mean_over_lists(values)
        return {"valid_auc": None, "valid_logloss": float(loss), "valid_ndcg": ndcg}

    def summarise(self, labels: Array, scores: Array, users: Array) -> dict[str, Any]:
        """Metrics of a finished run; users (N,) are those of the samples or lists."""
        return {**ranking.means_at_cutoffs(labels, scores)}


Objective = ClickPrediction | ListRanking
CLICKS: Final = ClickPrediction()
LISTS: Final = ListRanking()
