"""Run in two processes by test_ddp.py: each rank writes the weights it ends with."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_compress import GradualPruning
from tests.conformance.tiny import WINDOW, Tiny, data

CASES = {
    "fisher": {"criterion": "fisher"},
    "wanda": {"criterion": "wanda", "scope": "layer"},
    "random": {"criterion": "random"},
    "regrow": {"criterion": "magnitude", "regrow": "random", "schedule": "constant"},
}

if __name__ == "__main__":
    for name, settings in CASES.items():
        model = Tiny()
        trainer = pl.Trainer(
            strategy="ddp",
            devices=2,
            accelerator="cpu",
            max_epochs=2,
            callbacks=[GradualPruning(0.75, **settings, **WINDOW)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(data(64), batch_size=4))  # each rank sees its own half
        torch.save(model.state_dict(), Path(sys.argv[1]) / f"{name}-{trainer.global_rank}.pt")
