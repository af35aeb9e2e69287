"""Run in two processes by test_ddp.py: a report, of which each rank writes what it knows."""

import json
import sys
from pathlib import Path

from tests.callbacks.reporting import Classifier, loader, pruning, report, trainer

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    reporting = report(folder)
    run = trainer(pruning(), reporting, strategy="ddp", devices=2)
    run.fit(Classifier(), loader(64), loader(64, seed=2))
    (folder / f"rank-{run.global_rank}.json").write_text(json.dumps(reporting.report is not None))
    run.save_checkpoint(folder / "model.ckpt")  # from both ranks, as Lightning wants it
