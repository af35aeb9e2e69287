"""What an evaluation of both models leaves for the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lightning_compress.measurement.fidelity_figures import Fidelity
from lightning_compress.report.attempts import Attempts
from lightning_compress.report.given import Given
from lightning_compress.report.schema import Evaluation

DENSE, COMPRESSED = "dense", "compressed"

_STAGES = re.compile(r"val(id(ation)?)?|test")
_HIGHER = re.compile(r"acc|f1|auc|auroc|mcc|pearson|spearman|iou|precision|recall|bleu|rouge|r2|map|dice|psnr|kappa")
_LOWER = re.compile(r"loss|err|mse|mae|rmse|perplexity|ppl|nll|ece")


@dataclass
class Compared:
    """What the evaluation of both models came to.

    Attributes:
        loader: name of the data; ``None`` if there was none.
        examples: how many, over all processes.
        metrics: what each model's evaluation logged, by ``"dense"`` and ``"compressed"``.
        networks: what each module's step calls, by the same names.
        given: inputs of the networks, batch by batch, with labels where there are any, on the CPU.
        fidelity: of the answers.
    """

    loader: str | None = None
    examples: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    networks: dict[str, nn.Module] = field(default_factory=dict)
    given: list[Given] = field(default_factory=list)
    fidelity: Fidelity | None = None


def evaluation(compared: Compared, monitor: str | None, attempts: Attempts) -> Evaluation | None:
    """How quality was measured, and by which metric it is to be read.

    Args:
        compared: what was measured.
        monitor: the metric that was asked for; one of a validation stands for that of a test too (``val_acc``,
            ``test_acc``). ``None`` for the first that is no loss.
        attempts: is told if that metric was not logged by both.
    """
    if compared.loader is None or not compared.metrics:
        return None
    logged = compared.metrics[COMPRESSED]
    chosen = _first(logged) if monitor is None else _alike(logged, monitor)
    if chosen is None and (monitor is not None or not logged):
        names = ", ".join(logged) or "nothing"
        attempts.note("monitor", f"the evaluation logs no {monitor or 'metric'} with self.log; it logs {names}.")
    dense = compared.metrics.get(DENSE)
    if chosen is not None and dense is not None and chosen not in dense:
        attempts.note("monitor", f"the dense model does not log {chosen}; it logs {', '.join(dense) or 'nothing'}.")
    return Evaluation(compared.loader, compared.examples, chosen, None if chosen is None else higher_is_better(chosen))


def higher_is_better(name: str) -> bool | None:
    """How a metric is to be read, as far as its name tells.

    Example:
        >>> higher_is_better("val_accuracy"), higher_is_better("test_loss"), higher_is_better("val_score")
        (True, False, None)
    """
    if _LOWER.search(name.lower()):
        return False
    return True if _HIGHER.search(name.lower()) else None


def _first(logged: Mapping[str, float]) -> str | None:
    return next((name for name in logged if "loss" not in name.lower()), next(iter(logged), None))


def _alike(logged: Mapping[str, float], monitor: str) -> str | None:
    if monitor in logged:
        return monitor
    bare = _STAGES.sub("", monitor.removesuffix("_epoch"))
    return next((name for name in logged if _STAGES.sub("", name) == bare), None)
