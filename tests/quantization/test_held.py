import copy

import numpy as np
import torch

from lightning_compress.quantization.held import HoldsTensors


def holder():
    module = HoldsTensors()
    module.hold("step", torch.tensor([1e-12]).requires_grad_())
    module.hold("place", torch.tensor([3], dtype=torch.int32))
    return module


def test_held_tensors_are_not_cast_and_stay_the_same_objects():
    module = holder()
    step, optimizer = module.step, torch.optim.SGD([module.step], lr=1.0)
    step.grad = torch.ones(1)
    module.half().bfloat16().double().cpu()
    assert module.step is step
    assert (module.step.dtype, module.step.item()) == (torch.float32, np.float32(1e-12))
    assert module.place.dtype == torch.int32
    optimizer.step()
    assert module.step.item() == -1.0


def test_held_tensors_move_and_are_copied_with_the_module():
    module = holder()
    assert copy.deepcopy(module).step is not module.step
    assert copy.deepcopy(module).step.requires_grad
    module.to("meta")
    assert {tensor.device.type for tensor in module.held().values()} == {"meta"}
    assert module.step.requires_grad
    module.to_empty(device="cpu")
    assert {tensor.device.type for tensor in module.held().values()} == {"cpu"}


def test_memory_given_to_other_parameters_leaves_the_numbers():
    module = holder()
    before = {name: tensor.clone() for name, tensor in module.held().items()}
    model = torch.nn.Sequential(module, torch.nn.Linear(2, 2, device="meta"))
    model.to_empty(device="cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.held().items())


def test_parameters_of_children_are_cast_as_ever():
    module = holder()
    module.add_module("child", torch.nn.Linear(2, 2))
    assert module.half().child.weight.dtype == torch.float16
