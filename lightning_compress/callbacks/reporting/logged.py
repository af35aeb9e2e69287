"""What a module logs while it is evaluated outside of the Trainer's own loop."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_compress.core import ConfigurationError
from lightning_compress.export.failures import reason
from lightning_compress.report.attempts import Attempts

Reduce = Callable[[Tensor, str], Tensor]
Gather = Callable[[Any], list[Any]]

_REDUCTIONS = ("mean", "sum", "max", "min")
_SIGNATURE = inspect.signature(pl.LightningModule.log)


@dataclass
class _Figure:
    """One name: of each batch's value the sum, weighted by its size for a mean, or the extreme."""

    reduction: str
    value: Tensor
    weight: float

    def add(self, value: Tensor, weight: float) -> None:
        if self.reduction in ("max", "min"):
            self.value = getattr(torch, f"{self.reduction}imum")(self.value, value)
        else:
            self.value, self.weight = self.value + value, self.weight + weight

    def total(self, reduce: Reduce) -> float:
        if self.reduction != "mean":
            return float(reduce(self.value, self.reduction))
        sums = reduce(torch.stack([self.value, self.value.new_tensor(self.weight)]), "sum")
        return float(sums[0] / sums[1])


class _Kind(NamedTuple):
    """What was logged under a name: a figure with its reduction, or a metric at a place in the module."""

    reduction: str | None
    path: str | None


_UNREGISTERED = _Kind(None, None)


@dataclass
class Logged:
    """Stands in for ``self.log`` and ``self.log_dict``; keeps what Lightning would show at the end of an epoch.

    Args:
        loaders: how many there are; with several, a name gets its loader's number, as in Lightning.
    """

    loaders: int = 1
    batch_size: int = 1
    loader: int = 0
    _found: dict[str, _Figure | Metric] = field(default_factory=dict)
    _module: pl.LightningModule | None = None

    @contextmanager
    def listening_to(self, module: pl.LightningModule) -> Iterator[None]:
        """While open, what the module logs comes here and not to the Trainer."""
        self._module = module
        names = ("log", "log_dict")
        before = {name: module.__dict__[name] for name in names if name in module.__dict__}
        module.__dict__.update({name: getattr(self, name) for name in names})
        try:
            yield
        finally:
            for name in names:
                del module.__dict__[name]
            module.__dict__.update(before)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As :meth:`pytorch_lightning.LightningModule.log` in an evaluation."""
        given = _SIGNATURE.bind(self, name, value, *args, **kwargs).arguments
        if given.get("on_epoch") is False:
            return
        if self.loaders > 1 and given.get("add_dataloader_idx", True):
            name = f"{name}/dataloader_idx_{self.loader}"
        if isinstance(value, Metric):
            self._found[name] = value
            return
        reduction = _reduction(name, given.get("reduce_fx", "mean"))
        tensor = torch.as_tensor(value).detach().double().mean()
        weight = float(given.get("batch_size") or self.batch_size)
        scaled = tensor * weight if reduction == "mean" else tensor
        known = self._found.get(name)
        if isinstance(known, _Figure):
            known.add(scaled, weight)
        else:
            self._found[name] = _Figure(reduction, scaled, weight)

    def log_dict(self, dictionary: Mapping[str, Any] | MetricCollection, *args: Any, **kwargs: Any) -> None:
        """As :meth:`pytorch_lightning.LightningModule.log_dict` in an evaluation."""
        collection = isinstance(dictionary, MetricCollection)
        for name, value in dictionary.items(keep_base=False) if collection else dictionary.items():  # type: ignore[call-arg]
            self.log(str(name), value, *args, **kwargs)

    def totals(self, reduce: Reduce, gather: Gather, attempts: Attempts) -> dict[str, float]:
        """Every figure over all batches and processes, in the order in which the names first came.

        Args:
            reduce: a tensor over the processes by ``"sum"``, ``"max"`` or ``"min"``.
            gather: what each process has; one may have logged what another did not, or have had no batch at all.
            attempts: is told of a metric that cannot be computed.
        """
        paths = {id(part): path for path, part in self._module.named_modules()} if self._module else {}
        logged = {
            name: _Kind(one.reduction, None) if isinstance(one, _Figure) else _Kind(None, paths.get(id(one)))
            for name, one in self._found.items()
        }
        everywhere = gather(logged)
        found = {}
        for name, kind in {name: kind for names in everywhere for name, kind in names.items()}.items():
            if kind == _UNREGISTERED and not all(name in names for names in everywhere):
                continue  # a process that has no such object cannot take part in what the others compute
            one = self._found.get(name) or self._absent(kind)
            try:
                value = one.total(reduce) if isinstance(one, _Figure) else _computed(one)
            except Exception as error:
                attempts.note(name, f"{type(error).__name__}: {reason(error)}")
                continue
            if value is not None:
                found[name] = value
        return found

    def _absent(self, kind: _Kind) -> _Figure | Metric:
        """What adds nothing to a figure that other processes logged."""
        if kind.reduction is None:
            return cast("Metric", cast("pl.LightningModule", self._module).get_submodule(str(kind.path)))
        nothing = {"max": -torch.inf, "min": torch.inf}.get(kind.reduction, 0.0)
        return _Figure(kind.reduction, torch.tensor(nothing, dtype=torch.double), 0.0)


def _computed(metric: Metric) -> float | None:
    """A metric's value over all processes, if it is one number."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
        value = metric.compute()
    metric.reset()
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None


def _reduction(name: str, given: Any) -> str:
    called = given if isinstance(given, str) else getattr(given, "__name__", "")
    reduction = {"amax": "max", "amin": "min"}.get(called, called)
    if reduction not in _REDUCTIONS:
        raise ConfigurationError(f"self.log({name!r}, reduce_fx={given!r}): the report reads {', '.join(_REDUCTIONS)}.")
    return reduction
