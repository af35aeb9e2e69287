"""Lightning's ``FSDPStrategy`` on the CPU, which it is not made for, and torch's FSDP nearly is.

It has to be told the device. What it moves off a GPU it then frees there, and of what it takes to the CPU it thinks
that it has a copy; on the CPU both are the same memory.
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from pytorch_lightning.plugins import FSDPPrecision
from pytorch_lightning.strategies import FSDPStrategy, fsdp
from torch import nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.api import FullOptimStateDictConfig
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

_wrap = FullyShardedDataParallel.__init__


def _on_cpu(self, *args, device_id, **settings):
    _wrap(self, *args, device_id=torch.device("cpu"), **settings)


def _kept_in_place(module, world_size, rank0_only=True):
    return FullyShardedDataParallel.state_dict_type(
        module,
        StateDictType.FULL_STATE_DICT,
        FullStateDictConfig(rank0_only=rank0_only),
        FullOptimStateDictConfig(offload_to_cpu=True, rank0_only=rank0_only),
    )


@contextmanager
def _told_where_it_is():
    with ExitStack() as told:
        told.enter_context(mock.patch.object(FullyShardedDataParallel, "__init__", _on_cpu))
        told.enter_context(mock.patch.object(fsdp, "_get_full_state_dict_context", _kept_in_place))
        told.enter_context(mock.patch.object(torch.Tensor, "cpu", torch.Tensor.clone))
        yield


class OnCpu(FSDPStrategy):
    def _setup_model(self, model):
        with _told_where_it_is():
            return super()._setup_model(model)

    @contextmanager
    def model_sharded_context(self):
        with _told_where_it_is(), super().model_sharded_context():
            yield

    def lightning_module_state_dict(self):
        with _told_where_it_is():
            return super().lightning_module_state_dict()

    def optimizer_state(self, optimizer):
        with _told_where_it_is():
            return super().optimizer_state(optimizer)

    def load_checkpoint(self, checkpoint_path, weights_only=None):
        with _told_where_it_is():
            return super().load_checkpoint(checkpoint_path, weights_only)


class PrecisionOnCpu(FSDPPrecision):
    def __init__(self, precision):
        super().__init__(precision)
        self.scaler = ShardedGradScaler(device="cpu") if precision == "16-mixed" else None

    def forward_context(self):
        return torch.autocast("cpu", torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16)


def strategy(*, folder=False, **settings):
    """Keyword arguments of a Trainer in a world of processes; each linear layer is flattened by itself."""
    how = {"auto_wrap_policy": {nn.Linear}, "state_dict_type": "sharded" if folder else "full"} | settings
    size = torch.distributed.get_world_size()
    return {"strategy": OnCpu(**how), "devices": size, "use_distributed_sampler": False}
