"""Fits under ``FSDPStrategy`` on all GPUs here, written into a folder: a script, which Lightning starts again."""

import sys
import warnings
from pathlib import Path

import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import nn

from tests.distributed.flattened import go_on, train_and_save


def on_cuda(*, folder=False, **settings):
    how = {"auto_wrap_policy": {nn.Linear}, "state_dict_type": "sharded" if folder else "full"} | settings
    devices = {"accelerator": "cuda", "devices": torch.cuda.device_count()}
    return {"strategy": FSDPStrategy(**how), "use_distributed_sampler": False} | devices


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    train_and_save(Path(sys.argv[1]), on_cuda)
    go_on(Path(sys.argv[1]), on_cuda)
