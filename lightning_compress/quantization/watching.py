"""What all activation quantizers share: they watch the batches of training, and ranges follow between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.core import CompressionError
from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.held import HoldsTensors
from lightning_compress.quantization.observers import ActivationObserver

DECAY = 0.95  # of the moving averages, a step
_NOTHING = (torch.inf, -torch.inf, 0.0, 0.0)
_NO_BATCH = (torch.inf, -torch.inf, 0.0, 0.0, 0.0)

Reduce = Callable[[Tensor, Literal["max", "mean"]], Tensor]  # a tensor over ranks, element by element


def alone(tensor: Tensor, how: Literal["max", "mean"]) -> Tensor:  # noqa: ARG001 (one signature for all)
    """A reduction over the one process that there is."""
    return tensor


class ActivationQuantizer(HoldsTensors):
    """Shows a layer its input as it will be once quantized; until active, and before any range is known, as it is.

    :func:`merge` takes what all quantizers have watched into their ranges, between two steps, so that all ranks and
    all micro-batches count alike.

    Args:
        name: of the layer and input, for messages.
        grid: of integers.
        observer: finds the range of a tensor.

    Attributes:
        active: whether to quantize.
        watching: whether to watch the batches of training.
        has_range: whether a range is known.
        seen: smallest and largest number, averaged over batches; for learned steps also the mean absolute value, and
            how many numbers one example has; ``[4]``.
        batch: of what came since the last merge the smallest and the largest number, and for learned steps the most
            numbers that one example had, the sum of the batches' mean absolute values, and their count; ``[5]``.
    """

    seen: Tensor
    batch: Tensor

    def __init__(self, name: str, grid: Grid, observer: ActivationObserver) -> None:
        super().__init__()
        self.name = name
        self.grid = grid
        self.observer = observer
        self.watching = self.has_range = False
        self.hold("seen", torch.tensor(_NOTHING))
        self.hold("batch", torch.tensor(_NO_BATCH))

    @override
    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor to compute with, of the same shape and type; integers stay as they are."""
        if not tensor.is_floating_point():
            return tensor
        if self.training and self.watching and tensor.numel():
            self.watch_(tensor.detach())
        return self.quantize(tensor) if self.active and self.has_range else tensor

    @property
    def wants_sizes(self) -> bool:
        """Whether its first range is made from mean absolute values."""
        return False

    def simulated_bits(self) -> float | None:
        """Bits of one number that it shows; ``None`` while it shows it as it is."""
        return self.grid.bits if self.active and self.has_range else None

    def quantize(self, tensor: Tensor) -> Tensor:
        """Fake-quantize; of the same shape and type."""
        raise NotImplementedError

    def grid_parameters(self) -> tuple[Tensor, Tensor, Grid]:
        """Scale (float32), zero point (int32), both without dimensions, and grid of the integers, for export.

        Raises:
            CompressionError: no range was seen, or the grid has a form that integers cannot express.
        """
        raise NotImplementedError

    def begin_(self) -> None:
        """The first range was seen."""

    @override
    def plain_state(self) -> dict[str, Any]:
        return {"has_range": self.has_range, "grid": [self.grid.low, self.grid.high]}

    @override
    def load_plain_state(self, state: Mapping[str, Any]) -> None:
        self.has_range, self.grid = bool(state["has_range"]), Grid(*map(int, state["grid"]))

    def refuse_unseen(self) -> None:
        """Refuse to be exported before any range was seen.

        Raises:
            CompressionError: names the layer.
        """
        if not self.has_range:
            raise CompressionError(
                f"no range was observed for the input of {self.name}: train or calibrate first; if the layer is never "
                f"called (its parent may read its weight), add exclude={self.name!r}."
            )

    @torch.no_grad()
    def watch_(self, tensor: Tensor) -> None:
        """Take a tensor, not empty and without a gradient, into what is kept for the next :func:`merge`."""
        low, high = self.observer(tensor, self.grid)
        self.batch[0] = torch.minimum(self.batch[0], low)
        self.batch[1] = torch.maximum(self.batch[1], high)

    @torch.no_grad()
    def take_in_(self, other: ActivationQuantizer) -> None:
        """Take what another one has watched into what is kept for the next :func:`merge`."""
        self.batch[0] = torch.minimum(self.batch[0], other.batch[0])
        self.batch[1:3] = torch.maximum(self.batch[1:3], other.batch[1:3])
        self.batch[3:] += other.batch[3:]


@torch.no_grad()
def merge(quantizers: Sequence[ActivationQuantizer], reduce: Reduce) -> None:
    """Take what was watched since the last call into the ranges' moving averages (Jacob et al. 2018, section 3.1).

    The first range is taken as it is, later ones by ``DECAY``; a quantizer that watched nothing keeps its range.

    Args:
        quantizers: those of a model, in the same order on all ranks; on any devices.
        reduce: over ranks; called once, or never if none is watching, and once more while one wants mean sizes.

    Raises:
        CompressionError: an activation was NaN or infinite, on any rank; names the layer.
    """
    watching = [quantizer for quantizer in quantizers if quantizer.watching]
    if not watching:
        return
    device = watching[0].batch.device
    # Smallest values negated, so that one reduction takes the largest of everything. A reduction may lose NaN on its
    # way from one rank to the others, but not infinity.
    sign = torch.tensor([-1.0, 1.0, 1.0], device=device)
    batches = torch.stack([quantizer.batch.to(device) for quantizer in watching])
    ends = reduce((batches[:, :3] * sign).nan_to_num(torch.inf, torch.inf, -torch.inf), "max") * sign
    unseen = ends[:, 0] > ends[:, 1]
    broken = ~(ends.isfinite().all(1) | unseen)
    if bool(broken.any()):
        names = [quantizer.name for quantizer, bad in zip(watching, broken.tolist(), strict=True) if bad]
        raise CompressionError(
            f"the input of {names[0]}{f' and of {len(names) - 1} more' if names[1:] else ''} was NaN or infinite: "
            "training diverged; lower the learning rate, or clip gradients (Trainer(gradient_clip_val=1.0))."
        )
    sizes = batches[:, 3:].contiguous()  # as a reduction wants it
    if any(quantizer.wants_sizes for quantizer in watching):
        sizes = reduce(sizes, "mean")
    mean_sizes = sizes[:, :1] / sizes[:, 1:].clamp(min=torch.finfo(sizes.dtype).tiny)
    together = torch.cat([ends[:, :2], mean_sizes, ends[:, 2:]], 1)
    nothing = torch.tensor(_NO_BATCH, device=device)
    for quantizer, batch, none in zip(watching, together, unseen.tolist(), strict=True):
        if none:
            continue
        found = batch.to(quantizer.seen.device)
        quantizer.seen.copy_(torch.lerp(found, quantizer.seen, DECAY) if quantizer.has_range else found)
        quantizer.batch.copy_(nothing)
        if not quantizer.has_range:
            quantizer.begin_()
            quantizer.has_range = True
