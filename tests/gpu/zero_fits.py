"""Fits under DeepSpeed's ZeRO, and the same without: a script, since a process group stays behind in its process."""

import json
import sys
from pathlib import Path

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

from tests.callbacks.distilling import WAYS
from tests.conformance.cases import CASES
from tests.conformance.tiny import UPDATES, WEIGHTS, WINDOW, ResumableLoader, Tiny, fit

STAGES = (1, 2)
MAKERS = {case.name: lambda case=case: case.make(**WINDOW) for case in CASES} | WAYS
PRUNING = next(case for case in CASES if case.name == "fisher")


def student():
    model = Tiny()
    model.body[2].p = 0.0
    return model


def weights(model):
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def largest_difference(found, expected):
    return max(float((found[name].float() - expected[name].float()).abs().max()) for name in expected)


def run(callback, *others, **settings):
    """Train by batches that are the same every time."""
    model = student()
    trainer = fit(model, callback, *others, batches=ResumableLoader(), **settings)
    return model, trainer


def compare(strategy, stage, name, plainly, under_zero):
    """A fit under ZeRO beside one without, in full precision, and one in bfloat16."""
    expected = weights(run(MAKERS[name](), **plainly)[0])
    found = weights(run(MAKERS[name](), strategy=strategy(stage), **under_zero)[0])
    model, _ = run(MAKERS[name](), strategy=strategy(stage), precision="bf16-mixed", **under_zero)
    case = next((case for case in CASES if case.name == name), None)
    return {
        "off": largest_difference(found, expected),
        "holds": case is None or bool(case.holds(model)),
        "finite": all(bool(weight.isfinite().all()) for weight in model.parameters()),
    }


def steps(strategy, stage, under_zero, **settings):
    """At which optimizer steps pruning acted, and how many the engine made."""
    callback, acted = PRUNING.make(**WINDOW), []
    update = callback.update
    callback.update = lambda model, now, trainer: (acted.append(now.step), update(model, now, trainer))
    _, trainer = run(callback, strategy=strategy(stage), **settings, **under_zero)
    engine = trainer.strategy.deepspeed_engine
    return {"acted": acted, "as_asked": acted == UPDATES, "made": engine.global_steps, "skipped": engine.skipped_steps}


def resume(strategy, stage, folder, under_zero):
    """A run that goes on from a folder, beside the whole; and how many zeros a single file has that is made of it."""

    def part(**settings):
        saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1)
        return weights(run(PRUNING.make(**WINDOW), saving, strategy=strategy(stage), **settings, **under_zero)[0])

    whole = part()
    off = largest_difference(part(ckpt_path=folder / "step=5.ckpt"), whole)
    convert_zero_checkpoint_to_fp32_state_dict(str(folder / "step=15.ckpt"), str(folder / "single.ckpt"))
    single = torch.load(folder / "single.ckpt", weights_only=False, map_location="cpu")["state_dict"]
    zeros = {name: [int((of[name] == 0).sum()) for of in (single, whole)] for name in WEIGHTS}
    return {"off": off, "zeros": zeros}


def main(folder, strategy, on_device):
    """Write what was found, a file for each stage."""
    for stage in STAGES:
        under_zero = on_device | {"devices": 1}
        found = {"fits": {name: compare(strategy, stage, name, on_device, under_zero) for name in MAKERS}}
        found["accumulated"] = steps(strategy, stage, under_zero, accumulate_grad_batches=2, max_epochs=4)
        found["half"] = steps(strategy, stage, under_zero, precision="16-mixed", max_epochs=6)
        found["resumed"] = resume(strategy, stage, folder / f"stage_{stage}", under_zero)
        (folder / f"{stage}.json").write_text(json.dumps(found))


def on_cuda(stage):
    from pytorch_lightning.strategies import DeepSpeedStrategy

    return DeepSpeedStrategy(stage=stage, initial_scale_power=34)  # too large by far: first steps overflow


if __name__ == "__main__":
    main(Path(sys.argv[1]), on_cuda, {"accelerator": "cuda", "devices": 1})
