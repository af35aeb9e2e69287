"""Sharded parameters are refused before any training, in one sentence."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from lightning_compress import ConfigurationError, GradualPruning
from tests.conformance.tiny import Tiny


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("criterion", ["magnitude", "fisher", "movement"])
def test_sharded_parameters_are_refused(process_group, criterion):
    model = Tiny()
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    with pytest.raises(ConfigurationError, match=r"sharded parameters \(body\.0\.weight, .*strategy='ddp'"):
        GradualPruning(0.5, criterion=criterion).prepare(model)
