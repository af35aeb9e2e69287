"""What each callback adds to a process's memory and time: formulas, checked at two sizes, and for 7B on 8 devices.

A decoder with Llama's linear layers and random weights trains for a few steps, once without a callback and once with
each, on one process, on two with DDP, and on two that share the weights (``fully_shard``, gloo). "Stays" is what all
tensors take between two steps, beyond the run without the callback; "peak" is what torch's allocator gives out at most
during an update (or, without updates, during a step) beyond that run. Times are processor time of the first process.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.fine_tuning import show
from benchmarks.points import Points
from lightning_compress import GradualPruning, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.core.layout import is_sharded
from lightning_compress.distillation import Hint, SoftTargets
from tests.distributed.worlds import run_world

ONE, DDP, FSDP2 = "one process", "DDP", "FSDP2"
WORLD = {ONE: 1, DDP: 2, FSDP2: 2}
SEQUENCES, TOKENS, HEADS, STEPS = 2, 32, 8, 8
MEASURED = 3  # the update: there are masks by then, and weights to be pruned
PROFILED = 6  # the batch whose forward pass is, after that update
BINS = 65_536 * 8  # bytes of one histogram
F32 = 4


@dataclass(frozen=True)
class Size:
    """A decoder with Llama's linear layers; the figures that the formulas read."""

    width: int
    inner: int
    blocks: int
    vocabulary: int = 1_024

    @property
    def layers(self) -> list[tuple[int, int]]:
        """``(outputs, inputs)`` of the weights that are pruned and quantized: all but embedding and last layer."""
        mlp = [(self.inner, self.width)] * 2 + [(self.width, self.inner)]
        return ([(self.width, self.width)] * 4 + mlp) * self.blocks

    @property
    def n(self) -> int:
        """Target weights."""
        return sum(rows * columns for rows, columns in self.layers)

    @property
    def ends(self) -> int:
        """Parameters of the embedding and the last layer."""
        return 2 * self.width * self.vocabulary

    @property
    def largest(self) -> int:
        """Weights of the largest target."""
        return max(rows * columns for rows, columns in self.layers)


SIZES = {"2M": Size(256, 688, 2), "9M": Size(512, 1_376, 3)}
SEVEN_B = Size(4_096, 11_008, 32, 32_000)


class Block(nn.Module):
    """Attention and a gated layer, without norms."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return mixed


def decoder(size: Size) -> nn.Sequential:
    """Tokens to logits."""
    blocks = [Block(size.width, size.inner) for _ in range(size.blocks)]
    embedding, last = nn.Embedding(size.vocabulary, size.width), nn.Linear(size.width, size.vocabulary, bias=False)
    return nn.Sequential(embedding, *blocks, last)


def shard(model: nn.Sequential, mesh: Any) -> None:
    """Block by block, the two ends together."""
    for block in list(model)[1:-1]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


class Student(pl.LightningModule):
    """Predicts the tokens it is given."""

    def __init__(self, size: Size, *, sharded: bool) -> None:
        super().__init__()
        self.sharded, self.model = sharded, decoder(size)

    def configure_model(self) -> None:
        if self.sharded and not hasattr(self.model, "reshard"):
            shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]).flatten(0, 1), batch[0].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class ShardedTeacher(pl.Callback):
    """Gives each process its part of a teacher; stands beside ``KnowledgeDistillation``."""

    def __init__(self, model: nn.Sequential) -> None:
        self.model = model

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy):
            shard(self.model, pl_module.device_mesh["data_parallel"])  # type: ignore[index]


def pruning(**settings: Any) -> list[pl.Callback]:
    return [GradualPruning(start=1, end=STEPS, every=2, **{"sparsity": 0.5} | settings)]


def distilled(size: Size, *, narrow: bool = False, sharded: bool = False) -> list[pl.Callback]:
    teacher = decoder(Size(size.width // 2, size.inner // 2, size.blocks, size.vocabulary) if narrow else size)
    losses = [SoftTargets(), Hint([("1", "1")])] if narrow else [SoftTargets()]
    return [*([ShardedTeacher(teacher)] if sharded else []), KnowledgeDistillation(teacher, losses)]


def quantized(method: Any) -> list[pl.Callback]:
    return [QuantizationAwareTraining(method=method, start=0, freeze_ranges=STEPS)]


CASES: dict[str, Callable[[Size], list[pl.Callback]]] = {
    "none": lambda _: [],
    "prune magnitude": lambda _: pruning(criterion="magnitude"),
    "prune fisher": lambda _: pruning(),
    "prune movement": lambda _: pruning(criterion="movement", scope="layer"),
    "prune wanda": lambda _: pruning(criterion="wanda", scope="layer"),
    "prune fisher 2:4": lambda _: pruning(pattern="2:4"),
    "distil": distilled,
    "distil, sharded": partial(distilled, sharded=True),
    "distil, hint": partial(distilled, narrow=True),
    "distil self": lambda _: [KnowledgeDistillation("self")],
    "distil ema": lambda _: [KnowledgeDistillation("ema")],
    "quantize minmax": lambda _: quantized("minmax"),
    "quantize lsq": lambda _: quantized("lsq"),
}


def runs_under(case: str, strategy: str) -> bool:
    """Only sharded students have sharded teachers here; DDP differs from one process in little."""
    if strategy == DDP:
        return case in ("none", "prune fisher", "distil", "quantize minmax", "quantize lsq")
    return strategy == FSDP2 or case != "distil, sharded"


def stays(case: str, size: Size, ranks: int = 1, *, teacher: int | None = None, width: int = F32) -> float:
    """Bytes that stay on each process between steps.

    Args:
        case: of ``CASES``.
        size: of the student.
        ranks: that share the weights; 1 for one process and DDP.
        teacher: its parameters; the student's if not given.
        width: bytes of a weight.
    """
    part, inputs = size.n / ranks, len(size.layers)
    everything = size.n + size.ends
    rows, features = (sum(layer[place] for layer in size.layers) for place in (0, 1))
    given = everything if teacher is None else teacher
    narrow = size.n / 4 + size.ends / 2  # half as wide
    # After a forward pass alone ``fully_shard`` leaves the outermost module's own weights whole.
    left_whole = width * size.ends if ranks > 1 else 0
    return {
        "prune magnitude": width * part,
        "prune fisher": (width + F32) * part,
        "prune fisher 2:4": (width + F32) * part,
        "prune movement": (2 * width + F32) * part,
        "prune wanda": width * part + F32 * features,
        "distil": width * given,
        "distil, sharded": width * given / ranks + left_whole,
        "distil, hint": width * narrow + 3 * F32 * (size.width + 1) * size.width / 2,
        "distil self": width * everything / ranks + left_whole,
        "distil ema": F32 * everything / ranks,
        "quantize minmax": 2 * 4 * F32 * inputs,
        "quantize lsq": 3 * F32 * rows + 2 * 4 * F32 * inputs + (3 + 1 + 1 + 1) * F32 * inputs,
    }[case]


def forward_adds(case: str, size: Size, tokens: int, ranks: int = 1) -> float:
    """Bytes beyond the run without it that are there when the loss is (float32)."""
    inputs = sum(columns for _, columns in size.layers)
    if case.startswith("quantize"):
        # Of weights that are gathered layer by layer nothing is kept.
        return (F32 * size.n if ranks == 1 else 0) + F32 * inputs * tokens
    projected = F32 * tokens * size.width / 2 if case == "distil, hint" else 0.0
    return 6 * F32 * tokens * size.vocabulary + projected if case.startswith("distil") else 0.0


def update_takes(case: str, size: Size, ranks: int = 1, *, width: int = F32) -> float:
    """Bytes at the peak of an update of the masks, beyond what stays."""
    part, largest, shared = size.n / ranks, size.largest / ranks, ranks > 1
    if case in ("prune movement", "prune wanda"):  # scope="layer"
        return (1 + width) * part + (largest if case == "prune movement" else 0)
    units = case == "prune fisher 2:4"  # with scores of their own
    selecting = (F32 + 1 if units else F32) * part + 2 * (len(size.layers) + 1) * BINS
    marking = 6.25 * part + 12 * largest if units else 6 * part + 8 * largest
    return max(selecting, marking) if shared else marking


class Gauge(pl.Callback):
    """Stands last: what is there between steps, what a forward pass and an update take at most, and for how long."""

    def __init__(self) -> None:
        self.stays = self.step_peak = self.update_peak = self.at_loss = 0
        self.steps: list[float] = []
        self.updates: list[float] = []
        self._count = 0
        self._updated = False
        self._memory: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradualPruning):
                callback.update = partial(self._update, callback.update)  # type: ignore[method-assign]

    def _update(self, update: Callable[..., None], *arguments: Any) -> None:
        self._updated, self._count = True, self._count + 1
        if self._count == 1:  # what is freed later counts only if it was allocated under the profiler
            self._memory = allocations().__enter__()
        with torch.autograd.profiler.record_function(f"update {self._count}"):
            began = time.process_time()
            update(*arguments)
            self.updates.append(time.process_time() - began)
        if self._count == MEASURED:
            self._memory.__exit__(None, None, None)
            self.update_peak = peak(self._memory, within=f"update {self._count}")

    def on_train_batch_start(self, *_: Any) -> None:
        self._updated = False
        if len(self.steps) == PROFILED:
            self._memory = allocations().__enter__()
        self._began = time.process_time()

    def on_before_backward(self, *_: Any) -> None:
        # Until here, where all is there that the backward pass reads, and the last gradients still are.
        if len(self.steps) == PROFILED:
            self._memory.__exit__(None, None, None)
            self.step_peak, self.at_loss = peak(self._memory), left(self._memory)

    def on_train_batch_end(self, *_: Any) -> None:
        alike = not self._updated and len(self.steps) not in (0, PROFILED)
        self.steps.append(time.process_time() - self._began if alike else float("nan"))
        if len(self.steps) == STEPS - 1:  # after the last one ranges are frozen, and their moments are let go
            self.stays = live_bytes()


def allocations() -> Any:
    """Records what torch's allocator does."""
    return torch.autograd.profiler.profile(use_cpu=True, profile_memory=True)


def peak(memory: Any, *, within: str | None = None) -> int:
    """The most that was allocated at a time, in bytes, beyond what there was when the named part began."""
    events = sorted(memory.kineto_results.events(), key=lambda event: event.start_ns())
    begin, end = next(
        ((event.start_ns(), event.start_ns() + event.duration_ns()) for event in events if event.name() == within),
        (0, float("inf")),
    )
    now = highest = first = 0
    for event in events:
        if event.name() == "[memory]" and event.start_ns() <= end:
            now += event.nbytes()
            if event.start_ns() < begin:
                first = highest = now
            highest = max(highest, now)
    return highest - first


def left(memory: Any) -> int:
    """What was allocated under the profiler and is still there, in bytes."""
    return sum(event.nbytes() for event in memory.kineto_results.events() if event.name() == "[memory]")


def live_bytes() -> int:
    """Of all tensors that this process has, each memory once."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and not is_sharded(one)]
    storages = [one.untyped_storage() for one in tensors if one.layout == torch.strided and one.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


def train(case: str, size: Size, strategy: str, folder: Path) -> None:
    """In each process of a world."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    gauge = Gauge()
    chosen: Any = {ONE: "auto", DDP: "ddp", FSDP2: None}[strategy] or ModelParallelStrategy(
        data_parallel_size=WORLD[strategy], tensor_parallel_size=1
    )
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        strategy=chosen,
        devices=WORLD[strategy],
        callbacks=[*CASES[case](size), gauge],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    tokens = torch.randint(size.vocabulary, (SEQUENCES * STEPS, TOKENS))
    trainer.fit(Student(size, sharded=strategy == FSDP2), DataLoader(TensorDataset(tokens), batch_size=SEQUENCES))
    if trainer.global_rank == 0:
        steps = [seconds for seconds in gauge.steps if seconds == seconds]  # noqa: PLR0124 (without NaN)
        found = {
            "stays": gauge.stays,
            "step_peak": gauge.step_peak,
            "at_loss": gauge.at_loss,
            "update_peak": gauge.update_peak,
            "step_ms": round(1e3 * statistics.median(steps), 1) if steps else None,
            "update_ms": round(1e3 * statistics.median(gauge.updates[MEASURED:]), 1) if gauge.updates else None,
        }
        (folder / "found.json").write_text(json.dumps(found))


def measure(case: str, size: Size, strategy: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run_world(WORLD[strategy], train, case, size, strategy, Path(folder))  # type: ignore[no-untyped-call]
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
        return found


def check(points: Points, strategy: str, case: str) -> list[str]:
    """A row: predicted and measured at both sizes."""
    ranks, row = WORLD[strategy] if strategy == FSDP2 else 1, [strategy, case]
    for name, size in SIZES.items():
        settings = {"size": name, "strategy": strategy}
        plain, found = (
            points.get({"case": one} | settings, partial(measure, one, size, strategy)) for one in ("none", case)
        )
        row.append(compared(stays(case, size, ranks), found["stays"] - plain["stays"]))
        if found["update_ms"] is not None:
            row.append(compared(update_takes(case, size, ranks), found["update_peak"]))
            row.append(f"{found['update_ms'] / plain['step_ms']:.2f}")
        else:  # under FSDP2 the forward pass takes most while weights are gathered, which hides the rest
            what = "step_peak" if ranks == 1 else "at_loss"
            adds = forward_adds(case, size, SEQUENCES * TOKENS, ranks)
            hidden = ranks > 1 and not case.startswith("quantize")
            row.append("" if hidden else compared(adds, found[what] - plain[what]))
            row.append(f"{found['step_ms'] / plain['step_ms'] - 1:.2f}")
    return row


def compared(predicted: float, measured: float) -> str:
    """In MB."""
    return f"{predicted / 1e6:.3g} / {measured / 1e6:.3g}"


def at_7b(case: str, ranks: int = 8) -> list[str]:
    """A row: a 7B Llama whose float32 weights 8 devices share; a teacher is as large, in bfloat16."""
    teacher = case in ("distil", "distil, sharded")
    constant = stays(case, SEVEN_B, ranks, width=2 if teacher else F32)
    pruned = case.startswith("prune")
    peak = update_takes(case, SEVEN_B, ranks) if pruned else forward_adds(case, SEVEN_B, 4_096, ranks)
    return [case, f"{constant / 1e9:.1f}", f"{peak / 1e9:.1f}"]


def main() -> None:
    """Measure what is not in the file yet, and show it all."""
    points = Points("scale", {"torch": torch.__version__, "threads": "1"})
    named = [case for case in CASES if case != "none"]
    rows = [check(points, strategy, case) for strategy in WORLD for case in named if runs_under(case, strategy)]
    columns = [f"{what}, {size}" for size in SIZES for what in ("stays", "peak", "of a step")]
    show("Predicted / measured, MB", ["strategy", "case", *columns], rows)
    shared = [case for case in named if runs_under(case, FSDP2) and case != "distil, hint"]
    show("7B on 8 devices, GB each", ["case", "stays", "at the peak"], map(at_7b, shared))


if __name__ == "__main__":
    main()
