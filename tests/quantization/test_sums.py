"""Which outputs residual sums read, found by running a batch; integers judge the sums themselves."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from lightning_compress.core import CheckpointError
from lightning_compress.quantization import remove
from lightning_compress.quantization.batchnorm import is_folded
from lightning_compress.quantization.model import strip_
from lightning_compress.quantization.outputs import QuantizedBefore
from lightning_compress.quantization.sums import SumFinder, Sums, agreed
from lightning_compress.quantization.watching import alone
from tests.quantization.judges import integers_by_numpy, numbers_by_numpy, settings
from tests.quantization.models import quantized
from tests.quantization.residual import IMAGES, Block, Functional, Inverted, SharedActivation, resnet, with_blocks

# The second block widens: it reads what the first gives through convolutions alone.
FOUND = ["blocks.0.norm2", "blocks.1.act2", "blocks.1.norm2", "blocks.1.shortcut", "blocks.2.norm2", "pool"]


def with_sums(model, *, batch=IMAGES, **settings):
    return quantized(model, [batch], **{"include": "*.weight", "residual_sums": True} | settings)


def operands(module):
    """What modules give, by name, in one evaluation."""
    seen = {}
    handles = [
        own.register_forward_hook(lambda _, args, output, name=name: seen.update({name: output.clone()}))
        for name, own in module.named_modules()
    ]
    with torch.no_grad():
        module.eval()(IMAGES)
    for handle in handles:
        handle.remove()
    return seen


def test_finds_what_is_added_and_who_else_reads_it():
    model = resnet()
    quantization = with_sums(model)
    assert sorted(quantization.outputs) == FOUND
    assert quantization.state_dict()["readers"] == {"blocks.0.conv1": "pool", "blocks.2.conv1": "blocks.1.act2"}
    assert isinstance(model.blocks[0].conv1.input_quantizer, QuantizedBefore)
    assert model.blocks[0].conv1.rounded_input_bits() == 8
    assert all(is_folded(block.conv2) for block in model.blocks)


def test_each_sum_is_one_of_integers():
    model = resnet()
    quantization = with_sums(model)
    quantization.freeze_()
    shown = operands(model)
    sums = [("blocks.0.norm2", "pool", "blocks.0.act2"), ("blocks.2.norm2", "blocks.1.act2", "blocks.2.act2")]
    for *pair, after in sums:
        total = 0.0
        for name in pair:
            scale, zero_point, grid = model.get_submodule(name).output_quantizer.grid_parameters()
            integers = integers_by_numpy(shown[name], scale, zero_point, grid.low, grid.high)
            assert len(np.unique(integers)) > 8
            assert torch.equal(numbers_by_numpy(integers, scale, zero_point), shown[name])
            total = total + float(scale) * (integers - int(zero_point))
        torch.testing.assert_close(shown[after], torch.from_numpy(total).float().relu(), rtol=1e-6, atol=1e-6)


def test_what_a_module_gives_is_rounded_as_integers_are():
    model = resnet()
    with_sums(model).freeze_()
    quantizer = model.pool.output_quantizer
    after = operands(model)["pool"]
    quantizer.active = False
    before = operands(model)["pool"]
    scale, zero_point, grid = quantizer.grid_parameters()
    expected = numbers_by_numpy(integers_by_numpy(before, scale, zero_point, grid.low, grid.high), scale, zero_point)
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


def test_the_range_is_that_of_the_batch_that_was_watched():
    model = resnet()
    reference = copy.deepcopy(model).train()
    seen = {}
    for name in FOUND:
        reference.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: output.clone()})
        )
    reference(IMAGES)
    with_sums(model)
    for name, output in seen.items():
        low, high = model.get_submodule(name).output_quantizer.seen[:2]
        assert (low, high) == (output.min(), output.max())


def test_a_module_that_gives_something_else_too_is_passed_over_for_what_holds_it():
    model = with_blocks(SharedActivation)
    assert sorted(with_sums(model).outputs) == ["blocks.0", "blocks.0.norm2", "blocks.1.norm2", "pool"]


def test_a_container_that_counts_its_children_gets_none():
    model = with_blocks(SharedActivation)
    model.pool = nn.Sequential(model.pool, model.blocks[0].relu)  # which gives other things elsewhere
    assert sorted(with_sums(model).outputs) == ["blocks.0", "blocks.1.norm2"]
    assert len(model.pool) == 2


def test_a_sum_that_another_sum_reads():
    model = with_blocks(Inverted)
    quantization = with_sums(model)
    assert sorted(quantization.outputs) == ["blocks.0", "blocks.0.layers.3", "blocks.1.layers.3", "pool"]
    assert quantization.state_dict()["readers"] == {"blocks.0.layers.0": "pool", "blocks.1.layers.0": "blocks.0"}


class Sum(nn.Module):
    """What stands between a convolution and the head."""

    def __init__(self, what):
        super().__init__()
        self.conv, self.what, self.norm = nn.Conv2d(4, 4, 3, padding=1), what, nn.BatchNorm2d(4)
        self.own = nn.Parameter(torch.randn(8, 4, 4, 4))

    def forward(self, images):
        return self.what(self, self.norm(self.conv(images)), images)


@pytest.mark.parametrize(
    ("what", "count"),
    [
        (lambda block, new, old: new + old, 2),
        (lambda block, new, old: torch.add(new, old), 2),
        (lambda block, new, old: new.add_(old), 2),
        (lambda block, new, old: new + new, 0),
        (lambda block, new, old: new + block.own, 0),
        (lambda block, new, old: new + 1.0, 0),
        (lambda block, new, old: 1.0 + new, 0),
        (lambda block, new, old: new + old.mean((2, 3), keepdim=True), 0),
        (lambda block, new, old: torch.add(new, old, alpha=2), 0),
        (lambda block, new, old: old.mul_(1.0) + new, 0),
        (lambda block, new, old: old + old.clone(), 0),
        (lambda block, new, old: new - old, 0),
        (lambda block, new, old: ((new > 0) + (old > 0)).float(), 0),
    ],
)
def test_only_a_sum_of_two_outputs_counts(what, count):
    torch.manual_seed(0)
    model = with_blocks(lambda _: Sum(what), 1)
    assert len(with_sums(model).outputs) == count


def test_sums_without_convolutions_stay_as_they_are():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.conv = nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv2d(3, 3, 1)

        def forward(self, images):
            return self.one(images) + self.other(images)

    assert with_sums(Added()).outputs == []


def test_what_no_module_gives_stays_as_it_is_and_is_counted(caplog):
    model = with_blocks(Functional)
    with caplog.at_level("INFO", "lightning_compress.quantization.model"):
        assert with_sums(model).outputs == []
    assert "2 residual sums stay as they are" in caplog.text


def test_a_parameter_that_is_added_makes_no_residual_sum(caplog):
    model = with_blocks(lambda _: Sum(lambda block, new, old: new + block.own), 1)
    with caplog.at_level("INFO", "lightning_compress.quantization.model"):
        with_sums(model)
    assert not caplog.text


def test_other_settings_of_a_reader_keep_its_own_quantizer():
    model = resnet()
    quantization = with_sums(model, overrides={"blocks.0.conv1.weight": {"activation_bits": 4}})
    assert "pool" in quantization.outputs
    assert "blocks.0.conv1" not in quantization.state_dict()["readers"]
    assert model.blocks[0].conv1.rounded_input_bits() == 4


def test_a_module_that_runs_twice_has_one_range_for_both():
    model = with_blocks(lambda width: Block(width, width))
    model.blocks.insert(0, model.blocks[0])
    seen = []
    handle = model.blocks[0].act2.register_forward_hook(lambda _, args, output: seen.append(output))
    quantization = with_sums(model)
    handle.remove()
    assert sorted(quantization.outputs) == ["blocks.0.act2", "blocks.0.norm2", "blocks.2.norm2", "pool"]
    low, high = model.blocks[0].act2.output_quantizer.seen[:2]
    assert (low, high) == (torch.stack(seen).min(), torch.stack(seen).max())
    assert seen[0].max() != seen[1].max()


def test_evaluation_in_between_is_not_watched():
    model = resnet()
    quantization = with_sums(copy.deepcopy(model))
    expected = quantization.state_dict()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, images):
            self.eval()
            with torch.no_grad():
                self.net(100 * images)
            self.train()
            return self.net(images)

    found = with_sums(Twice()).state_dict()
    assert found["outputs"] == [f"net.{name}" for name in expected["outputs"]]
    kept = found["quantizers"]["net.pool.output_quantizer"]
    assert torch.equal(kept["seen"], expected["quantizers"]["pool.output_quantizer"]["seen"])


@pytest.mark.parametrize("changes", [{}, {"weight_bits": 4, "activation_bits": 4, "method": "lsq"}])
def test_a_state_finds_the_sums_again_without_a_batch(changes):
    first, second = resnet(), resnet()
    quantization = with_sums(first, **changes)
    quantization.freeze_()
    again = with_sums(second, residual_sums=False, **changes)
    again._residual_sums = True
    again.load_state_dict(quantization.state_dict())
    assert again.outputs == quantization.outputs
    for norm, other in zip(first.modules(), second.modules(), strict=True):
        if isinstance(norm, nn.BatchNorm2d):
            other.load_state_dict(norm.state_dict())
    with torch.no_grad():
        assert torch.equal(first.eval()(IMAGES), second.eval()(IMAGES))
    again.load_state_dict(with_sums(resnet(), residual_sums=False, **changes).state_dict())  # and back
    assert again.outputs == []
    assert not any(isinstance(module, QuantizedBefore) for module in second.modules())


def test_a_state_of_another_network_is_refused():
    state = with_sums(resnet()).state_dict()
    state["outputs"].append("blocks.7.norm2")
    with pytest.raises(CheckpointError, match=r"blocks\.7\.norm2"):
        with_sums(resnet()).load_state_dict(state)


def test_keys_and_parameters_stay():
    model = resnet()
    before = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    with_sums(model)
    assert (list(model.state_dict()), [id(parameter) for parameter in model.parameters()]) == before


def test_plain_modules_again():
    model = resnet()
    classes = [type(module) for module in resnet().modules()]
    with_sums(model)
    plain = remove(model)
    assert [type(module) for module in plain.modules()] == classes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    strip_(model)
    assert [type(module) for module in model.modules()] == classes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert not torch.equal(plain.eval()(IMAGES), model.eval()(IMAGES))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_quantize_by_themselves(duplicate):
    model = resnet()
    with_sums(model)
    copied = duplicate(model.eval())
    expected = copied(IMAGES)
    assert torch.equal(expected, model(IMAGES))
    for module in model.modules():
        if hasattr(module, "output_quantizer"):
            module.output_quantizer.seen.mul_(2)
    assert torch.equal(copied(IMAGES), expected)
    assert not torch.equal(model(IMAGES), expected)


def test_a_copy_made_while_a_batch_is_watched_is_not():
    model = resnet()
    finder = SumFinder(dict(model.named_modules()), settings(), set())
    assert not finder.stop().quantizers  # no layer is quantized: nothing to look for
    with_sums(model, residual_sums=False, fold_batchnorm=False)
    finder = SumFinder(dict(model.named_modules()), settings(), set())
    model(IMAGES)
    copy.deepcopy(model)(100 * IMAGES)
    found = finder.stop()
    assert sorted(found.quantizers) == FOUND
    with torch.no_grad():
        assert found.quantizers["pool"].batch[1] < 10
    assert not any(module._forward_hooks for module in model.modules())


def test_one_graph_in_training():
    torch._dynamo.reset()
    model = resnet()
    counter = CompileCounter()
    quantization = with_sums(model)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(IMAGES).sum().backward()
        quantization.advance_(alone, refresh_every=2)
    assert counter.frame_count == 1
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES))
    torch._dynamo.reset()


def test_found_in_a_model_that_is_compiled_already():
    torch._dynamo.reset()
    model = resnet()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    compiled(IMAGES)
    quantization = with_sums(compiled)
    assert sorted(quantization.outputs) == FOUND
    frames = counter.frame_count
    shown = compiled(IMAGES)
    assert counter.frame_count > frames  # compiled again, and with the quantizers
    torch.testing.assert_close(shown, model(IMAGES))
    torch._dynamo.reset()


class Failing(Block):
    """Fails, or is interrupted, in the middle of a batch."""

    def forward(self, images):
        raise self.error("no")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_a_batch_that_fails(error):
    model = resnet()
    quantization = with_sums(model, residual_sums=False)
    quantization._residual_sums = True
    model.blocks[1].__class__, model.blocks[1].error = Failing, error
    quantization.watch_()
    with pytest.raises(error):
        model(IMAGES)
    quantization.stop_watching_()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert _get_current_function_mode() is None
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_ranks_agree():
    quantizer = object()
    names = ["", "a", "b", "c", "d"]
    mine = Sums({"a": quantizer, "b": quantizer, "c": quantizer}, {"d": "a"}, 0)
    other = Sums({"a": quantizer, "c": quantizer}, {"d": "c"}, 0)
    sent = []
    agreed(other, names, lambda tensor, how: sent.append(tensor) or tensor, torch.device("cpu"))
    found = agreed(mine, names, lambda tensor, how: torch.maximum(tensor, sent[0]), torch.device("cpu"))
    assert list(found.quantizers) == ["a", "c"]
    assert found.readers == {}
    assert agreed(mine, names, alone, torch.device("cpu")) == mine


def test_another_mode_on_the_stack_stays():
    class Other(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Other() as mode:
        assert sorted(with_sums(resnet()).outputs) == FOUND
        assert _get_current_function_mode() is mode
