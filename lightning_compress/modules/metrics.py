"""Which torchmetrics belong to a task."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef
from torchmetrics.text import Perplexity

from lightning_compress.modules.heads import IGNORED, Task


class _TokenPerplexity(Perplexity):
    """Perplexity in log space: the parent's is infinite once the probability of one token underflows."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        losses = F.cross_entropy(preds.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum")
        self.total_log_probs += losses
        self.count += target.ne(IGNORED).sum()


def metrics_for(task: Task, num_labels: int) -> nn.ModuleDict:
    """Metrics of an evaluation by the names they are logged under, ``loss`` among them."""
    # The loss too: `self.log(loss, batch_size=...)` rounds the mean count down across processes.
    # A nan stays one: by default torchmetrics drops it, and under "disable" it drops the weights instead.
    metrics: dict[str, Metric] = {"loss": MeanMetric(nan_strategy=math.nan)}
    if task != "classification":
        metrics["perplexity"] = _TokenPerplexity()
    elif num_labels == 1:
        metrics |= {"mse": MeanSquaredError(), "pearson": PearsonCorrCoef()}
    else:
        metrics["accuracy"] = MulticlassAccuracy(num_labels, average="micro")
        metrics["macro_f1"] = MulticlassF1Score(num_labels, average="macro")
        metrics["mcc"] = MulticlassMatthewsCorrCoef(num_labels)
    return nn.ModuleDict(metrics)
