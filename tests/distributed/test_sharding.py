"""Tensors in parts, in a group of one process: what is asked of them, and what is said if a file is damaged."""

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.fsdp import fully_shard

from lightning_compress.core import CheckpointError
from lightning_compress.core.gathering import reshard, sharding_modules
from lightning_compress.core.layout import Layout, local, whole
from lightning_compress.core.sharded_state import StoredTensor, located, part_of, split, whole_on_first
from lightning_compress.core.spread import Spread
from tests.conformance.tiny import Tiny


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.fixture
def sharded(mesh):
    model = Tiny()
    fully_shard(model.body, mesh=mesh)
    return model


def test_a_part_shares_memory_with_its_tensor(sharded):
    weight = sharded.body[0].weight
    local(weight).zero_()
    assert not whole(weight.detach()).any()
    plain = sharded.head.weight
    assert local(plain) is plain


def test_after_a_validation_parts_are_back_on_demand(sharded):
    before = sharded.body[0].weight
    with torch.no_grad():
        sharded(torch.zeros(2, 8))
    assert sharded.body[0].weight is not before
    reshard(sharding_modules(sharded))
    assert sharded.body[0].weight is before


def test_ordinary_tensors_have_nothing_to_say_to_other_processes():
    tensors = [torch.ones(2, 3), torch.ones(4)]
    spread = Spread.of(tensors)
    assert not spread.is_shared
    assert spread.sums([tensor.sum() for tensor in tensors]).tolist() == [6.0, 4.0]
    assert float(spread.sum([tensor.sum() for tensor in tensors])) == 10.0
    assert all(one is other for one, other in zip(spread.agreed(tensors), tensors, strict=True))
    assert spread.mean(tensors[0]) is tensors[0]


def test_layouts_cut_and_join(sharded):
    weight = sharded.body[0].weight
    layout = Layout.of(weight)
    numbers = torch.arange(128.0).view(16, 8)
    assert torch.equal(layout.part(numbers), numbers)
    assert torch.equal(layout.whole(layout.part(numbers)), numbers)
    assert layout.evenly(30).whole(layout.evenly(30).part(torch.arange(30))).tolist() == list(range(30))


def test_a_state_is_split_and_read_back_under_another_layout(sharded, tmp_path):
    weight = sharded.body[0].weight.detach()
    state = {"a": [1, {"b.c": weight}], "d": torch.ones(2)}
    small, spread = split(state, "optimizer_0.x")
    assert spread.keys() == {"a.1.b.c"}
    checkpoint.save({"optimizer_0": {"x": spread}}, checkpoint_id=tmp_path)
    stored = located(small, tmp_path)["a"][1]["b.c"]
    assert torch.equal(part_of(stored, Layout(weight.shape), torch.empty(16, 8)), whole(weight))
    assert torch.equal(whole_on_first(state)["a"][1]["b.c"], whole(weight))
    assert torch.equal(part_of(weight, Layout(weight.shape), torch.empty(16, 8)), whole(weight))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_folder_without_the_tensor_is_refused(sharded, tmp_path):
    weight = sharded.body[0].weight.detach()
    checkpoint.save({"other": weight}, checkpoint_id=tmp_path)
    with pytest.raises(CheckpointError, match=r"'optimizer_0\.x'.*damaged or incomplete"):
        StoredTensor(tmp_path, "optimizer_0.x", weight.shape).read(Layout.of(weight), local(weight))
