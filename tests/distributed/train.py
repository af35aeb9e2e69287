"""Run by test_ddp.py in two processes, of which Lightning launches the second: what each rank ends with, and a report.

The second process runs this script again from its beginning, as one of a user's would.
"""

import runpy
import sys
from pathlib import Path

import torch

from tests.conformance.parallel_fits import LAUNCHED, run

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in LAUNCHED:
        found = run(name, 2, strategy="ddp", devices=2)
        torch.save(found["at the end"], folder / f"{name}-{torch.distributed.get_rank()}.pt")
        torch.distributed.barrier()
    runpy.run_module("tests.distributed.reporting", run_name="__main__")  # here, for the sake of one start for both
