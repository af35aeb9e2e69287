"""Fine-tune a real pretrained Transformer on real text, prune 80 % of its encoder, and show what that bought.

Run by ``make demo``; at most ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import transformers
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_model
from torch import nn

from examples.rotten_tomatoes import RottenTomatoes, minilm
from lightning_compress import GradualPruning, TransformerModule
from lightning_compress.export import save_compressed

SENTENCES = 3_000
ENCODER = "*.encoder.layer.*.weight"


def main() -> None:
    """Dense fit, pruned fit, table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="training sentences (default: %(default)s)")
    parser.add_argument("--sparsity", type=float, default=0.8, help="share of zeros (default: %(default)s)")
    parser.add_argument("--test-sentences", type=int, help="test sentences (default: all)")
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
    rows = [measure("dense", module, data)]

    console.print(f"\n2. Prune {arguments.sparsity:.0%} of the encoder's linear layers while training two more epochs.")
    module = with_learning_rate(module, 2e-4)
    pruning = GradualPruning(arguments.sparsity, include=ENCODER, end=0.5)
    trainer_for(2, pruning).fit(module, data)
    rows.append(measure(f"pruned, {arguments.sparsity:.0%}", module, data))

    console.print(table(rows))
    console.print(
        "Compressed: a bitmask and the values left, under zstd. The embeddings (11.9M parameters) stay dense.\n"
        "Unstructured zeros make the file smaller, not the model faster."
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


def measure(name: str, module: TransformerModule, data: RottenTomatoes) -> list[str]:
    """Accuracy on the test set, weights that are not zero, and bytes as written to disk."""
    trainer = trainer_for(1)
    accuracy = trainer.test(module, data, verbose=False)[0]["test_accuracy"]
    nonzero = sum(int((parameter != 0).sum()) for parameter in module.parameters())
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "model.safetensors"
        save_model(nn.ModuleDict({"model": module.model}), str(plain))
        compressed = save_compressed(module, Path(folder) / "model.safetensors.zst")
        dense_bytes = plain.stat().st_size
    return [
        name,
        f"{accuracy:.1%}",
        f"{nonzero / 1e6:.2f}M",
        f"{dense_bytes / 1e6:.1f} MB",
        f"{compressed / 1e6:.1f} MB",
    ]


def table(rows: list[list[str]]) -> Table:
    """Before and after."""
    result = Table(title="MiniLM on Rotten Tomatoes (subset)")
    for column in ("model", "test accuracy", "non-zero parameters", "plain file", "compressed file"):
        result.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        result.add_row(*row)
    return result


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
