"""How near a compressed model's answers are to the dense one's: one streaming metric over both models' logits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.measurement.fidelity_figures import (
    Fidelity,
    Group,
    Pair,
    calibration_error,
    macro_f1,
    matthews,
)
from lightning_compress.measurement.fidelity_inputs import Comparison, Slices, comparison, divergence, log_probabilities
from lightning_compress.measurement.fidelity_states import (
    flips_of,
    no_flips,
    no_slices,
    read_flips,
    read_slices,
    slices_of,
    surest,
    together,
)

_EXAMPLES = 4  # among the totals: predictions, flips, broken, mended, examples
_BINS = 15  # of the calibration error, as in Guo et al. 2017
_NUMBERS_AT_A_TIME = 1 << 23  # of logits: a vocabulary times all tokens of a batch would double its memory


class AnswerFidelity(Metric):
    """Compares the answers of a dense and a compressed model, batch by batch.

    The answer is the class of the largest logit. A model with one logit is binary: its class is 1 where the sigmoid
    is above one half, and it is compared as the two logits ``(0, logit)``, which give the same probabilities. Every
    state has a fixed size, at most five numbers a class; so a vocabulary of 30,000 is no trouble, and states of several
    processes or machines merge exactly.

    Args:
        num_classes: size of the logits' last dimension, 1 for a binary model with one logit; ``None`` to read it off
            the first batch. Needed where a process may get no batch at all, and for one logit without targets, which
            could as well be a regression.
        class_names: names for the classes in the result, instead of their numbers.
        flips: how many flipped examples to keep, those about which the compressed model is surest.
        options: those of ``torchmetrics.Metric``.

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> dense = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
        >>> compressed = torch.tensor([[2.0, 0.0], [0.5, 0.0], [3.0, 0.0]])
        >>> metric = AnswerFidelity()
        >>> metric.update(dense, compressed, torch.tensor([0, 1, 1]), indices=torch.tensor([7, 8, 9]))
        >>> result = metric.compute()
        >>> round(result.agreement, 3), result.broken, result.flipped[0].index
        (0.667, 1, 8)
        >>> result.classes[0]
        Group(name='1', examples=2, dense=0.5, compressed=0.0)
    """

    full_state_update = False
    is_differentiable = False

    class_counts: Tensor
    bin_counts: Tensor
    bin_confidences: Tensor
    totals: Tensor
    divergence: Tensor
    flipped: Tensor
    slice_counts: Tensor

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        class_names: Sequence[str] | None = None,
        flips: int = 20,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value, least in (("num_classes", num_classes, 1), ("flips", flips, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise ConfigurationError(f"{name}={value!r}: write an int of at least {least}.")
        self.num_classes = num_classes
        self.class_names = None if class_names is None else list(class_names)
        if num_classes is not None:
            self._check_names(max(2, num_classes))
        # A zero without dimensions grows into a row of classes when one is added to it.
        classes = torch.zeros(5, max(2, num_classes)) if num_classes else torch.zeros(())
        self.add_state("class_counts", classes.to(torch.int64), dist_reduce_fx="sum")
        self.add_state("bin_counts", torch.zeros(4, _BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bin_confidences", torch.zeros(2, _BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("divergence", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("flipped", no_flips(flips), dist_reduce_fx=surest)
        self.add_state("slice_counts", no_slices(), dist_reduce_fx=together)

    @torch.no_grad()
    def update(
        self,
        dense_logits: Tensor,
        compressed_logits: Tensor,
        target: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        slices: Slices | None = None,
    ) -> None:
        """Take one batch in.

        Args:
            dense_logits: ``[..., classes]``, of the dense model.
            compressed_logits: the same of the compressed model, for the same inputs.
            target: right classes, ``[...]``; where it is -100, the prediction does not count. Without targets only
                agreement, divergence and flips are known; of tokens, give only those that are not padding.
            indices: the place of each example in its loader, ``[batch]`` or ``[...]``; otherwise counted on in this
                process.
            slices: the slice of each example, as a list of names, or for each name which examples belong to it, as
                booleans; ``[batch]`` or ``[...]``. They may overlap. Needs ``target``.

        Raises:
            ConfigurationError: shapes that do not fit, targets that are no classes, as those of a regression.
            CompressionError: a logit is NaN.
        """
        batch = comparison(
            dense_logits,
            compressed_logits,
            target,
            indices,
            slices,
            num_classes=self.num_classes,
            seen=int(self.totals[_EXAMPLES]),
        )
        self._check_classes(batch.classes)
        # Here and below no state is changed in place: one that was reset in inference mode could not be.
        self.totals = self.totals + torch.tensor([0, 0, 0, 0, len(dense_logits)], device=self.totals.device)
        for part in batch.parts(max(1, _NUMBERS_AT_A_TIME // batch.classes)):
            self._take(part)

    def compute(self) -> Fidelity:
        """All figures of what was seen so far, over all processes.

        Raises:
            CompressionError: nothing was seen.
        """
        predictions, flips, broken, mended, _ = self.totals.tolist()
        if not predictions:
            raise CompressionError("no prediction was compared: the loader was empty, or all its targets are -100.")
        found = Fidelity(
            predictions=predictions,
            agreement=1 - flips / predictions,
            kl=float(self.divergence) / predictions,
            flips=flips,
            flipped=read_flips(self.flipped),
        )
        if not self.bin_counts.any():
            return found
        targets, dense_right, compressed_right, dense, compressed = self.class_counts
        return replace(
            found,
            broken=broken,
            mended=mended,
            calibration_error=Pair(*(calibration_error(*bins) for bins in self._bins())),
            macro_f1=Pair(macro_f1(targets, dense, dense_right), macro_f1(targets, compressed, compressed_right)),
            mcc=Pair(matthews(targets, dense, dense_right), matthews(targets, compressed, compressed_right)),
            classes=_worst_first(self._classes()),
            slices=_worst_first(read_slices(self.slice_counts)),
        )

    def _take(self, part: Comparison) -> None:
        log_p = log_probabilities(part.dense, "dense_logits")
        log_q = log_probabilities(part.compressed, "compressed_logits")
        dense, compressed = part.dense.argmax(1), part.compressed.argmax(1)
        sure = _probability(log_p, dense), _probability(log_q, compressed)
        target = torch.full_like(dense, -1) if part.target is None else part.target
        right = dense == target, compressed == target
        flipped = dense != compressed
        every = torch.ones_like(flipped)
        totals = torch.stack([every, flipped, right[0] & flipped, right[1] & flipped, ~every])
        self.totals = self.totals + totals.sum(1)
        self.divergence = self.divergence + divergence(log_p, log_q).double().sum()
        flips = flips_of(*(column[flipped] for column in (sure[1], part.index, target, dense, compressed)))
        self.flipped = surest(torch.cat([self.flipped, flips]), len(self.flipped))
        if part.target is None:
            return
        counted = (target, target[right[0]], target[right[1]], dense, compressed)
        counts = torch.stack([torch.bincount(classes, minlength=part.classes) for classes in counted])
        self.class_counts = self.class_counts + counts
        self._fill_bins(sure, right)
        if part.members:
            self.slice_counts = together(torch.cat([self.slice_counts, slices_of(part.members, *right)]))

    def _fill_bins(self, sure: Sequence[Tensor], right: Sequence[Tensor]) -> None:
        bounds = torch.arange(1, _BINS, device=self.bin_counts.device, dtype=torch.float64) / _BINS
        bins = [torch.bucketize(confidence.double(), bounds) for confidence in sure]
        counted = (bins[0], bins[0][right[0]], bins[1], bins[1][right[1]])
        self.bin_counts = self.bin_counts + torch.stack([torch.bincount(one, minlength=_BINS) for one in counted])
        # Not by bincount's weights, which on a GPU is not deterministic.
        nothing = torch.zeros_like(self.bin_confidences[0])
        sums = [nothing.index_add(0, one, confidence.double()) for one, confidence in zip(bins, sure, strict=True)]
        self.bin_confidences = self.bin_confidences + torch.stack(sums)

    def _bins(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for model in range(2):
            counts, right = self.bin_counts[2 * model : 2 * model + 2]
            yield counts, self.bin_confidences[model], right

    def _classes(self) -> Iterator[tuple[str, int, int, int]]:
        targets, dense_right, compressed_right, *_ = self.class_counts.tolist()
        for number, examples in enumerate(targets):
            if examples:
                name = str(number) if self.class_names is None else self.class_names[number]
                yield name, examples, dense_right[number], compressed_right[number]

    def _check_classes(self, classes: int) -> None:
        known = self.class_counts.shape[-1] if self.class_counts.dim() else classes
        if classes != known:
            raise ConfigurationError(f"dense_logits have {classes} classes, and {known} in the batches before.")
        self._check_names(classes)

    def _check_names(self, classes: int) -> None:
        if self.class_names is not None and len(self.class_names) != classes:
            raise ConfigurationError(f"class_names= has {len(self.class_names)} names for {classes} classes.")

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        # torchmetrics walks through what compute returns, and refuses a frozen dataclass on its way.
        hidden = super()._wrap_compute(lambda: _Hidden(compute()))

        @functools.wraps(compute)
        def revealed() -> Any:
            return hidden().content

        return revealed


class _Hidden:
    def __init__(self, content: Any) -> None:
        self.content = content


def _probability(log_probabilities: Tensor, answers: Tensor) -> Tensor:
    return log_probabilities.gather(1, answers[:, None]).squeeze(1).exp()


def _worst_first(counts: Iterable[tuple[str, int, int, int]]) -> tuple[Group, ...]:
    groups = [
        Group(name, examples, dense / examples, compressed / examples)
        for name, examples, dense, compressed in counts
        if examples
    ]
    return tuple(sorted(groups, key=lambda group: group.compressed - group.dense))
