"""The best model under a budget: zeros and bits for each layer, searched for, then trained once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from filelock import FileLock

from lightning_compress.core import CheckpointError
from lightning_compress.core.targets import Patterns
from lightning_compress.export.compressed import entropy_coded
from lightning_compress.export.files import write_whole
from lightning_compress.recipes.budget_arguments import check, layers_of, offered, open_folder
from lightning_compress.recipes.budget_carry_out import CarryOut
from lightning_compress.recipes.budget_fine_tune import check_fine_tune
from lightning_compress.recipes.budget_goal import Goal
from lightning_compress.recipes.budget_models import Judge, few_examples
from lightning_compress.recipes.budget_plans import FLOAT, prices_of_files
from lightning_compress.recipes.budget_result import BudgetResult
from lightning_compress.recipes.budget_study import import_optuna, search
from lightning_compress.recipes.sensitivity import sensitivity

_SAME_WITHIN = 0.01  # a relative difference that other precision or another device may make


def search_budget(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    *,
    budget: str,
    monitor: str,
    mode: Literal["max", "min"],
    out: str | os.PathLike[str],
    sparsities: Sequence[float] = (0.0, 0.5, 0.7, 0.8, 0.9),
    bits: Sequence[int] = (8, 6, 4, 3, 2),
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    examples: int = 256,
    trials: int = 200,
    storage: Any = None,
    fine_tune: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> BudgetResult:
    """The best plan of zeros and bits by layer under a budget, really applied, and trained once.

    Each layer is compressed alone first and the model evaluated (:func:`~lightning_compress.recipes.sensitivity`).
    That what layers lose adds up is taken for granted while plans are compared. The one that wins is then held against
    what it really loses, and against the best uniform plan, which takes its place where it really is better. The
    fine-tune prunes step by step and trains with rounded weights.

    Args:
        module: the trained dense model; stays as it is.
        data: with one validation loader, and for the fine-tune a training loader.
        budget: ``"8 MB"``: lose least in a file of at most so much; ``"1 point"`` (a hundredth of the metric) or
            ``"0.05 lost"`` (in its own unit): the smallest file that loses at most so much.
        monitor: the metric that is lost, as logged in validation. A loss tells more on few examples than accuracy.
        mode: whether it is better when large (``"max"``) or small (``"min"``).
        out: folder of everything kept: the sensitivity table, the study, the last checkpoint, the result. Called
            again with the same arguments, the search goes on where it was cut off.
        sparsities: shares of zeros on offer, in [0, 1).
        bits: of a weight on offer, 2 to 8; 32 leaves it in floating point. ``()``: nothing is quantized.
        include: which weights, as everywhere in this package; embeddings only if they are named.
        exclude: the same, taken away again.
        examples: of the validation set that each layer is judged by, evenly spaced.
        trials: plans that Optuna tries, of all processes together, beside the uniform ones and the one along the
            convex hulls. Each process beyond the first may add one more, that it had begun.
        storage: of the Optuna study: the path of a journal file, an address such as ``"sqlite:///study.db"``, or a
            storage object; by default a journal file in ``out``. Processes of one folder share the study.
        fine_tune: arguments of the Trainer that trains the winner, ``{"max_epochs": 1}`` say; callbacks among
            them come behind those of this package. ``None``: no training. Of several processes that share a folder
            one trains, the others are given ``None``.
        seed: of the trials and of the fine-tune.

    Returns:
        The plan and its figures; the weights are in ``out`` too, as ``plan.safetensors.zst`` untrained and
        ``model.safetensors.zst`` trained, for :func:`lightning_compress.load_compressed`.

    Raises:
        ConfigurationError: a value that cannot work, or a budget that no plan keeps; the nearest is named.
        TargetError: a pattern matches nothing.
        CheckpointError: the folder or the study is of another search, or damaged.
        OSError: the disk is full; with room again, the search goes on.
        MissingExtraError: optuna or zstandard is not installed.
    """
    numbers = {"examples": (examples, 1), "trials": (trials, 0), "seed": (seed, 0)}
    wanted = check(module, data, budget=budget, monitor=monitor, mode=mode, numbers=numbers)
    check_fine_tune(module, data, fine_tune)
    shares, widths = offered(sparsities, bits)
    layers = layers_of(module, include, exclude)
    import_optuna()
    entropy_coded(b"")  # hours before the first file is written
    prices = prices_of_files(module.state_dict(), layers, shares, widths)
    Goal(wanted, prices).refuse_impossible()
    folder = open_folder(out, {"monitor": monitor, "mode": mode, "examples": examples})
    judge, few = Judge(fine_tune or {}, monitor=monitor, mode=mode), few_examples(data, examples)
    dense, sample = judge.dense(module, data), judge.dense(module, few)
    with FileLock(folder / "sensitivity.lock"):
        found = sensitivity(
            module,
            lambda changed: judge(changed, few)[monitor],
            sparsities=[share for share in shares if share],
            bits=[width for width in widths if width != FLOAT],
            ranks=(),
            include=include,
            exclude=exclude,
            higher_is_better=mode == "max",
            path=folder / "sensitivity.json",
        )
    _refuse_other_data(found.dense, sample[monitor], folder, monitor)
    goal = Goal(wanted, prices.losing(found))
    goal.refuse_impossible()
    plan, done = search(goal, trials=trials, seed=seed, storage=storage, folder=folder)
    carry_out = CarryOut(module, data, few, judge, dense, sample, folder)
    result = carry_out(goal, plan, trials=done, fine_tune=fine_tune, seed=seed)
    write_whole(folder / ("plan.json" if result.tuned is None else "result.json"), result.to_json().encode())
    return result


def _refuse_other_data(before: float, now: float, folder: Path, monitor: str) -> None:
    if not math.isclose(before, now, rel_tol=_SAME_WITHIN, abs_tol=1e-6):
        raise CheckpointError(
            f"out={str(folder)!r} was begun with a dense model of {monitor} {before:.6g}, and on the same examples it "
            f"is {now:.6g} now: the data has changed, or evaluation is random; name another folder, or seed it."
        )
