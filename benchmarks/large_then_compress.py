"""Does the large model, compressed, win at equal bytes? MiniLM cut to several depths, fine-tuned for equal time.

Points are kept in an ignored folder and a finished one is not run again; the figures go to ``benchmarks/results``. Run
on a machine that does nothing else: the allowance is one of wall clock.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from benchmarks.fine_tuning import CACHE, LEARNING_RATE, SENTENCES, show
from benchmarks.points import RESULTS
from examples.rotten_tomatoes import RottenTomatoes, minilm
from lightning_compress import TransformerModule
from lightning_compress.distillation import student_from_teacher
from lightning_compress.recipes import Prune, Quantize, Result, plot, train_large_then_compress
from lightning_compress.report.plain import to_plain

DATA = "rt-3k"
KEPT = {2: [2, 5], 3: [1, 3, 5], 4: [0, 2, 3, 5], 6: None}  # of the six layers
BITS, SPARSITY = [8, 6, 4], [0.3, 0.6, 0.75, 0.9]


def build(depth: int) -> TransformerModule:
    """The pretrained MiniLM with some of its layers; the schedule cannot know how long the allowance lasts."""
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    layers = KEPT[depth]
    if layers is not None:
        model = student_from_teacher(model, layers)
    return TransformerModule(model.train(), learning_rate=LEARNING_RATE, schedule="constant")


def measure(allowance: str | int, sentences: int | None, out: Path) -> Result:
    """Run what is missing of the grid."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return train_large_then_compress(
        build,
        list(KEPT),
        RottenTomatoes(training_sentences=sentences),
        "val_accuracy",
        "max",
        allowance=allowance,
        compress=[Prune(sparsity=SPARSITY), Quantize(bits=BITS)],
        trainer_kwargs={"accelerator": "cpu", "gradient_clip_val": 1.0, **quiet},
        out=out,
    )


def save(result: Result, allowance: str | int) -> None:
    """The figures as JSON, and the picture."""
    content: dict[str, Any] = {
        "command": f"python -m benchmarks.large_then_compress --allowance '{allowance}'",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "result": to_plain(result),
    }
    (RESULTS / "large_then_compress.json").write_text(json.dumps(content) + "\n")
    (Path("docs") / "images" / "large_then_compress.svg").write_text(plot(result))


def main() -> None:
    """Measure, save, print the front."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allowance", default="6 min", help="of each size (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer steps in its place, for a quick look; nothing is saved")
    parser.add_argument("--sentences", type=int, default=SENTENCES[DATA], help="to train on (default: %(default)s)")
    arguments = parser.parse_args()
    allowance = arguments.steps or arguments.allowance
    name = f"{allowance}-{arguments.sentences}".replace(" ", "_")
    result = measure(allowance, arguments.sentences, CACHE.parent / "large_then_compress" / name)
    if arguments.steps is None:
        save(result, allowance)
    rows = [(p.size, p.compression, f"{(p.disk_bytes or 0) / 1e6:.1f}", f"{p.quality:.3f}") for p in result.front]
    show("The front: MiniLM cut and fine-tuned", ("layers", "compression", "MB", "accuracy"), rows)
    for claim in result.claims:
        print(f"{claim.claim} {claim.holds}: {claim.because}")


if __name__ == "__main__":
    main()
