"""Run in two processes by test_ddp.py: a report, of which each rank writes what it knows."""

import json
import sys
from pathlib import Path

from tests.callbacks.reporting import Classifier, examples, loader, pruning, report, trainer


class OneRankLogsMore(Classifier):
    """As a step does that logs a figure only where its batch has something to it."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.trainer.global_rank == 1:
            self.log("val_rare", float(batch_idx), reduce_fx="max")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    reporting = report(folder)
    run = trainer(pruning(), reporting, strategy="ddp", devices=2)
    run.fit(OneRankLogsMore(), loader(64), loader(64, seed=2))
    (folder / f"rank-{run.global_rank}.json").write_text(json.dumps(reporting.report is not None))
    run.save_checkpoint(folder / "model.ckpt")  # from both ranks, as Lightning wants it
    one_batch = report(folder / "one", dataloader=[examples(8)], baseline=Classifier())
    trainer(one_batch, strategy="ddp", devices=2).test(Classifier(), loader(16), verbose=False)
