"""Which layers a model can spare: its score with one layer compressed at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError, Target, select
from lightning_compress.core.layout import is_sharded
from lightning_compress.core.targets import Patterns
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.recipes.sensitivity_points import Kind, PointsFile, Sensitivity, SensitivityPoint
from lightning_compress.recipes.weight_changes import Bits, LowRank, pruned, rounded, rounding

Model = TypeVar("Model", bound=nn.Module)
Change = tuple[Kind, Any]


def sensitivity(
    model: Model,
    evaluate: Callable[[Model], float],
    *,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    bits: Sequence[Bits] = (8, 4, 3, 2),
    ranks: Sequence[float] = (0.5, 0.25, 0.1),
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    higher_is_better: bool = True,
    path: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Score a model with one layer pruned, rounded or of low rank, and all others as they are.

    Nothing is trained, so the figures say where compression hurts at first, not what is left after fine-tuning (Li et
    al. 2017, arXiv 1608.08710, section 3.2, for filters; Han et al. 2015, arXiv 1506.02626, figure 6, for weights).
    Zeros are those of the smallest magnitude; bits are per output, in the range of the least squared error; ranks are
    those of the truncated singular value decomposition.

    Args:
        model: any module. While a layer is looked at, its weight is changed in place; at the end, after an exception
            and after Ctrl-C too, every parameter, buffer and training flag is what it was, bit for bit. One copy of
            the model is in memory meanwhile.
        evaluate: called as ``evaluate(model)`` once for the model as it is and once a layer and change; returns
            accuracy, a loss, or any other number. It should give the same for the same weights.
        sparsities: shares of zeros, in (0, 1]; ``()`` for none.
        bits: of a weight, 2 to 8, or formats such as ``"ternary"``; ``()`` for none.
        ranks: shares of the full rank, in (0, 1]; ``()`` for none.
        include: which weights, as everywhere in this package.
        exclude: the same, taken away again.
        higher_is_better: ``False`` if ``evaluate`` returns a loss.
        path: of a JSON file that keeps each point as it ends; called again with the same arguments, the analysis goes
            on where it was cut off. ``evaluate`` is not part of what is compared.
        progress: whether to show a progress bar.

    Returns:
        All scores, with :meth:`~Sensitivity.rows`, :meth:`~Sensitivity.most_sensitive` and :meth:`~Sensitivity.plot`.

    Raises:
        ConfigurationError: a value that cannot work, or ``evaluate`` returned no number.
        TargetError: a pattern matches nothing.
        CheckpointError: the file is of another model or of other settings, or no such file.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.constant_(model[0].weight, 1.0)
        >>> total = sensitivity(model, lambda model: model[0].weight.sum(), sparsities=[0.25], bits=[8],
        ...                     ranks=[], progress=False)
        >>> [(row["kind"], row["score"], row["lost"]) for row in total.rows()]
        [('sparsity', 3.0, 1.0), ('bits', 4.0, 0.0)]
    """
    if not isinstance(model, nn.Module) or not callable(evaluate):
        raise ConfigurationError(
            f"model of type {type(model).__name__}, evaluate of type {type(evaluate).__name__}: give a module and a "
            "function that takes it and returns a number."
        )
    changes = _changes(sparsities, bits, ranks)
    targets = select(model, include=include, exclude=exclude)
    _refuse_impossible(targets, changes)
    settings = {
        "layers": [target.name for target in targets],
        "changes": [list(change) for change in changes],
        "higher_is_better": higher_is_better,
    }
    file = PointsFile(None if path is None else Path(path), fingerprint(model), settings)
    total = 1 + len(targets) * len(changes)
    done = (file.dense is not None) + len(file.points)
    with _kept(model) as restore_, Tqdm(total=total, initial=done, desc="sensitivity", disable=not progress) as bar:
        if file.dense is None:
            file.dense = _number(evaluate(model))
            restore_()
            _advance(file, bar)
        for target, kind, value, weight in _missing(targets, changes, file):
            with torch.no_grad():
                target.parameter.copy_(weight())
            file.points[target.name, kind, value] = _number(evaluate(model))
            restore_()
            _advance(file, bar)
    points = tuple(
        SensitivityPoint(target.name, kind, value, file.points[target.name, kind, value])
        for target in targets
        for kind, value in changes
    )
    return Sensitivity(file.dense, points, higher_is_better)


def _changes(sparsities: Sequence[float], bits: Sequence[Bits], ranks: Sequence[float]) -> list[Change]:
    for argument, values in (("sparsities", sparsities), ("bits", bits), ("ranks", ranks)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigurationError(f"{argument}={values!r} is no list; write {argument}=[...], or () for none.")
    for argument, shares in (("sparsities", sparsities), ("ranks", ranks)):
        for share in shares:
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0.0 < share <= 1.0:
                raise ConfigurationError(f"{argument}={list(shares)!r}: {share!r} is no share in (0, 1].")
    for each in bits:
        try:
            rounding(each)
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace("weight_bits=", f"bits={list(bits)!r}: ")) from error
    asked: dict[Kind, Sequence[Any]] = {"sparsity": sparsities, "bits": bits, "rank": ranks}
    changes: list[Change] = [(kind, value) for kind, values in asked.items() for value in dict.fromkeys(values)]
    if not changes:
        raise ConfigurationError("sparsities=(), bits=(), ranks=(): nothing to look at; name values for one of them.")
    return changes


def _refuse_impossible(targets: Sequence[Target], changes: Sequence[Change]) -> None:
    sharded = [target.name for target in targets if is_sharded(target.parameter)]
    if sharded:
        raise ConfigurationError(f"{sharded[0]} is spread over processes; analyse the model before it is sharded.")
    vectors = [target.name for target in targets if target.parameter.dim() < 2]  # noqa: PLR2004
    if vectors and any(kind == "rank" for kind, _ in changes):
        raise ConfigurationError(
            f"ranks=: {vectors[0]} is a vector and has no rank; add exclude={vectors[0]!r}, or write ranks=()."
        )


class _Layer:
    """One weight, and its decomposition once it is asked for."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @cached_property
    def _low_rank(self) -> LowRank:
        return LowRank(self.target)

    def changed(self, kind: Kind, value: Any) -> Tensor:
        if kind == "sparsity":
            return pruned(self.target, value)
        return rounded(self.target, value) if kind == "bits" else self._low_rank(value)


def _missing(
    targets: Sequence[Target], changes: Sequence[Change], file: PointsFile
) -> Iterator[tuple[Target, Kind, Any, Callable[[], Tensor]]]:
    for target in targets:
        layer = _Layer(target)  # given up with its factors before the next one
        for kind, value in changes:
            if (target.name, kind, value) not in file.points:
                yield target, kind, value, partial(layer.changed, kind, value)


def _advance(file: PointsFile, bar: Any) -> None:
    file.save()
    bar.update(1)


def _number(score: Any) -> float:
    try:
        return float(score.detach() if isinstance(score, Tensor) else score)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"evaluate returned a {type(score).__name__}, not one number; return accuracy or loss as a float."
        ) from error


@contextmanager
def _kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives a function that makes everything as it was, and calls it at the end whatever happens."""
    tensors = [*model.parameters(), *model.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]
    modes = {module: module.training for module in model.modules()}

    @torch.no_grad()
    def restore_() -> None:
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
        for module, mode in modes.items():
            module.training = mode

    try:
        yield restore_
    finally:
        restore_()
