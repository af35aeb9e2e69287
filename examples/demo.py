"""Fine-tune a real pretrained Transformer on real text, prune 80 % of its encoder, and show what that bought.

Run by ``make demo``; at most ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import transformers
from rich.console import Console

from examples.rotten_tomatoes import RottenTomatoes, minilm
from lightning_compress import CompressionReport, GradualPruning, TransformerModule
from lightning_compress.report import report_table

SENTENCES = 3_000
ENCODER = "*.encoder.layer.*.weight"


def main() -> None:
    """Dense fit, pruned fit, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="training sentences (default: %(default)s)")
    parser.add_argument("--sparsity", type=float, default=0.8, help="share of zeros (default: %(default)s)")
    parser.add_argument("--test-sentences", type=int, help="test sentences (default: all)")
    parser.add_argument("--report", default="runs/demo", help="folder of the report (default: %(default)s)")
    parser.add_argument("--runtimes", nargs="*", default=["onnxruntime"], help="where to measure latency")
    arguments = parser.parse_args()
    quieten()
    console = Console()
    data = RottenTomatoes(training_sentences=arguments.sentences)
    data.test = data.test[: arguments.test_sentences]
    console.print(
        f"MiniLM (22.7M parameters) on a [bold]subset[/bold] of Rotten Tomatoes: {len(data.training):,} of about "
        f"6,000 training sentences; tested on {len(data.test):,} test sentences."
    )

    pl.seed_everything(0, verbose=False)
    module = TransformerModule(minilm(), num_labels=2, learning_rate=1e-4)
    console.print("\n1. Fine-tune the dense model, one epoch.")
    trainer_for(1).fit(module, data)
    dense = copy.deepcopy(module)

    console.print(f"\n2. Prune {arguments.sparsity:.0%} of the encoder's linear layers while training two more epochs.")
    module = with_learning_rate(module, 2e-4)
    pruning = GradualPruning(arguments.sparsity, include=ENCODER, end=0.5)
    trainer_for(2, pruning).fit(module, data)

    console.print("\n3. Test both models, and measure what that bought.")
    report = CompressionReport(dense, dirpath=arguments.report, runtimes=arguments.runtimes)
    trainer_for(1, pruning, report).test(module, data, verbose=False)
    if report.report is None:
        raise SystemExit("There is no report; the warning above says why.")
    console.print(report_table(report.report), markup=False, highlight=False)
    console.print(
        "The embeddings (11.9M parameters) stay dense. Unstructured zeros make the file smaller, not the model\n"
        f"faster. The page: {Path(arguments.report) / 'report.html'}"
    )


def trainer_for(epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    """A quiet trainer with a progress bar."""
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


def with_learning_rate(module: TransformerModule, learning_rate: float) -> TransformerModule:
    """The same network, trained on with another learning rate: pruning wants a higher one than fine-tuning."""
    return TransformerModule(module.model, learning_rate=learning_rate)


def quieten() -> None:
    """Keep other libraries' advice off the screen."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for advice in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", advice)


if __name__ == "__main__":
    main()
