"""Does the large model, compressed, win at equal bytes?

``pretrained``: MiniLM cut to several depths, fine-tuned for equal time. ``scratch``: masked language models of four
sizes, pretrained on IMDb reviews for equal time, then fine-tuned. Points are kept in an ignored folder and a finished
one is not run again; the figures go to ``benchmarks/results``. Run on a machine that does nothing else: allowances are
wall clock.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import large_then_compress_scratch as scratch
from benchmarks.fine_tuning import CACHE, LEARNING_RATE, SENTENCES, show
from benchmarks.points import RESULTS
from examples.rotten_tomatoes import RottenTomatoes, minilm
from lightning_compress import TransformerModule
from lightning_compress.distillation import student_from_teacher
from lightning_compress.recipes import Prune, Quantize, Result, plot, plot_training, train_large_then_compress
from lightning_compress.report.plain import to_plain

DATA = "rt-3k"
IMAGES = Path("docs") / "images"
KEPT = {2: [2, 5], 3: [1, 3, 5], 4: [0, 2, 3, 5], 6: None}  # of the six layers
FRESH = "*.pooler.*"  # small numbers beside the pretrained ones: one threshold for all takes the whole layer
BITS, SPARSITY = [8, 6, 4], [0.3, 0.6, 0.75, 0.9]


def build(depth: int) -> TransformerModule:
    """The pretrained MiniLM with some of its layers; the schedule cannot know how long the allowance lasts."""
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    layers = KEPT[depth]
    if layers is not None:
        model = student_from_teacher(model, layers)
    return TransformerModule(model.train(), learning_rate=LEARNING_RATE, schedule="constant")


def pretrained(out: Path, allowance: int | str, *, sentences: int) -> Result:
    """Run what is missing of the grid."""
    return train_large_then_compress(
        build,
        list(KEPT),
        RottenTomatoes(training_sentences=sentences),
        "val_accuracy",
        "max",
        allowance=allowance,
        compress=[Prune(sparsity=SPARSITY, exclude=FRESH), Quantize(bits=BITS)],
        trainer_kwargs=scratch.TRAINER,
        out=out,
    )


def save(name: str, result: Result, allowance: str) -> None:
    """The figures as JSON beside those of the other families, and the pictures."""
    path, plain = RESULTS / "large_then_compress.json", to_plain(result)
    for training in plain["trainings"]:  # the losses of single batches would make most of the file
        training["curve"] = [moment for moment in training["curve"] if "val_loss" in moment["figures"]]
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    options = f"--only {name.partition('_')[0]} --allowance '{allowance}'"
    content[name] = {
        "command": f"python -m benchmarks.large_then_compress {options}",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "threads": torch.get_num_threads(),
        "result": plain,
    }
    path.write_text(json.dumps(content) + "\n")
    (IMAGES / f"large_then_compress_{name}.svg").write_text(plot(result))
    (IMAGES / f"large_then_compress_{name}_training.svg").write_text(plot_training(result))


def tell(name: str, result: Result) -> None:
    """The front and the claims on standard output."""
    rows = [(p.size, p.compression, f"{(p.disk_bytes or 0) / 1e6:.2f}", f"{p.quality:.3f}") for p in result.front]
    show(f"The front: {name}", ("size", "compression", "MB", result.monitor), rows)
    for claim in result.claims:
        print(f"{claim.claim} {claim.holds}: {claim.because}")


def main() -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("pretrained", "scratch"))
    parser.add_argument("--allowance", default="6 min", help="of each size (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer steps in its place, for a quick look; nothing is saved")
    parser.add_argument("--sentences", type=int, default=SENTENCES[DATA], help="to train on (default: %(default)s)")
    arguments = parser.parse_args()
    allowance = arguments.steps or arguments.allowance
    cache = CACHE.parent / "large_then_compress"
    name = f"{allowance}-{arguments.sentences}".replace(" ", "_")
    families: dict[str, Result] = {}
    if arguments.only != "scratch":
        families["pretrained"] = pretrained(cache / name, allowance, sentences=arguments.sentences)
    if arguments.only != "pretrained":
        text, out = cache / "scratch", cache / f"scratch-{name}"
        families["scratch"] = scratch.pretrain(text, out, allowance)
        families["scratch_fine_tuned"] = scratch.fine_tune(
            text,
            out,
            families["scratch"],
            steps=arguments.steps or scratch.FINE_TUNING_STEPS,
            bits=BITS,
            sparsity=SPARSITY,
            sentences=arguments.sentences,
        )
    for family, result in families.items():
        if arguments.steps is None:
            save(family, result, arguments.allowance)
        tell(family, result)


if __name__ == "__main__":
    main()
