import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_compress.core import CheckpointError, CompressionError, ConfigurationError, select
from lightning_compress.pruning.statistics import DECAY, NAMES, Statistics


def watched(module, *names, include="*", seed=0):
    statistics = Statistics(select(nn.ModuleDict({"layer": module}), include=include), names, seed)
    statistics.watch_inputs()
    return statistics


def batches(*shape, count=3):
    generator = torch.Generator().manual_seed(0)
    # Each feature has a scale of its own, so that none can be mistaken for another.
    return [torch.randn(shape, generator=generator) * torch.arange(1, shape[-1] + 1) for _ in range(count)]


def running_norm(squares):
    """Numpy's judgement: starts at the first batch's mean square, then decays."""
    running = squares[0]
    for square in squares[1:]:
        running = DECAY * running + (1 - DECAY) * square
    return np.sqrt(running)


def test_statistics_of_gradients_against_numpy():
    generator = np.random.default_rng(0)
    steps = generator.normal(size=(5, 2, 3, 4)).astype(np.float32)  # step, gradient or weight, rows, columns
    statistics = Statistics(select(nn.Linear(4, 3), include="*"), ["gradient", "taylor", "fisher", "movement"], 0)
    expected = dict.fromkeys(["gradient", "taylor", "fisher", "movement"], np.zeros((3, 4)))
    for gradient, weight in steps:
        statistics.observe_gradient(0, torch.from_numpy(gradient), torch.from_numpy(weight))
        values = {"gradient": gradient, "taylor": np.abs(gradient * weight), "fisher": gradient**2}
        expected |= {name: DECAY * expected[name] + (1 - DECAY) * value for name, value in values.items()}
        expected["movement"] = expected["movement"] - gradient * weight
    for name, value in expected.items():
        np.testing.assert_allclose(statistics.of(0)[name].numpy(), value, rtol=1e-4, atol=1e-6)


def test_gradients_in_half_precision_are_summed_in_single():
    statistics = Statistics(select(nn.Linear(1, 1).bfloat16(), include="weight"), ["movement"], 0)
    for _ in range(1000):
        statistics.observe_gradient(0, torch.full((1, 1), -1.0).bfloat16(), torch.ones(1, 1).bfloat16())
    assert statistics.of(0)["movement"].item() == 1000.0


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: Conv1D(3, 4)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", [(6, 4), (2, 5, 4)])
def test_input_norms_of_linear_layers(make, shape):
    module, seen = make(), batches(*shape)
    statistics = watched(module, "input_norm")
    for batch in seen:
        module(batch)
    norm = running_norm([(batch.numpy().reshape(-1, 4) ** 2).mean(axis=0) for batch in seen])
    on_weight = np.broadcast_to(norm, (3, 4))
    found = torch.broadcast_to(statistics.of(0)["input_norm"], module.weight.shape).numpy()
    np.testing.assert_allclose(found.T if isinstance(module, Conv1D) else found, on_weight, rtol=1e-5)


def test_input_norms_of_a_single_example_without_a_batch():
    module, batch = nn.Linear(4, 3), torch.tensor([1.0, -2.0, 3.0, 0.0])
    statistics = watched(module, "input_norm")
    module(batch)
    assert statistics.of(0)["input_norm"].tolist() == [[1.0, 2.0, 3.0, 0.0]]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (6, 5, 4)])
def test_input_norms_of_convolutions(groups, shape):
    module, seen = nn.Conv2d(6, 12, 3, groups=groups), batches(*shape)
    statistics = watched(module, "input_norm")
    for batch in seen:
        module(batch)
    norm = running_norm([(batch.numpy().reshape(-1, 6, 20) ** 2).mean(axis=(0, 2)) for batch in seen])
    found = torch.broadcast_to(statistics.of(0)["input_norm"], module.weight.shape).numpy()
    for output in range(12):
        first = output // (12 // groups) * (6 // groups)  # the first channel that this output reads
        for channel in range(6 // groups):
            np.testing.assert_allclose(found[output, channel], norm[first + channel], rtol=1e-5)


def test_input_norms_of_a_transposed_convolution():
    module, [batch] = nn.ConvTranspose1d(4, 6, 3, groups=2), batches(2, 4, 5, count=1)
    statistics = watched(module, "input_norm")
    module(batch)
    norm = np.sqrt((batch.numpy() ** 2).mean(axis=(0, 2)))
    found = torch.broadcast_to(statistics.of(0)["input_norm"], module.weight.shape).numpy()
    np.testing.assert_allclose(found, np.broadcast_to(norm[:, None, None], (4, 3, 3)), rtol=1e-5)


@pytest.mark.parametrize("keywords", [(), ("query", "key", "value"), ("value", "query", "key")])
def test_each_projection_of_attention_meets_its_own_input(keywords):
    module, seen = (
        nn.MultiheadAttention(4, 2, batch_first=True),
        [scale * b for scale, b in enumerate(batches(2, 3, 4), 1)],
    )
    inputs = dict(zip(("query", "key", "value"), seen, strict=True))
    statistics = watched(module, "input_norm", include="*.in_proj_weight")
    if keywords:
        module(**{name: inputs[name] for name in keywords})
    else:
        module(*seen)
    found = torch.broadcast_to(statistics.of(0)["input_norm"], (12, 4)).numpy()
    for place, batch in enumerate(seen):
        norm = np.sqrt((batch.numpy() ** 2).mean(axis=(0, 1)))
        np.testing.assert_allclose(found[4 * place : 4 * place + 4], np.broadcast_to(norm, (4, 4)), rtol=1e-5)


def test_projections_of_other_sizes_meet_their_own_inputs():
    module = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True)
    statistics = watched(module, "input_norm", include="*_proj_weight")
    inputs = [batches(2, 5, size, count=1)[0] for size in (4, 3, 2)]
    module(*inputs)
    for place, batch in enumerate(inputs):
        norm = np.sqrt((batch.numpy() ** 2).mean(axis=(0, 1)))
        np.testing.assert_allclose(
            torch.broadcast_to(statistics.of(place)["input_norm"], (4, len(norm))).numpy(),
            np.broadcast_to(norm, (4, len(norm))),
            rtol=1e-5,
        )


def test_a_layer_that_its_parent_reads_past_is_an_error_that_names_it():
    module = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8)
    statistics = watched(module, "input_norm", include="*.out_proj.weight")
    module(torch.randn(3, 2, 4))
    with pytest.raises(CompressionError, match=r"layer\.self_attn\.out_proj\.weight.*exclude='layer\.self_attn\.out"):
        statistics.of(0)["input_norm"]


def test_only_training_batches_count_and_only_while_watched():
    module, seen = nn.Linear(4, 3), batches(2, 4)
    statistics = watched(module, "input_norm")
    module(seen[0])
    first = statistics.of(0)["input_norm"].clone()
    module.eval()(seen[1])
    statistics.unwatch()
    module.train()(seen[2])
    assert torch.equal(statistics.of(0)["input_norm"], first)
    assert not module._forward_pre_hooks


def test_watching_changes_no_output():
    module, [batch] = nn.Linear(4, 3), batches(2, 4, count=1)
    expected = F.linear(batch, module.weight, module.bias)
    watched(module, "input_norm")
    assert torch.equal(module(batch), expected)


@pytest.mark.parametrize("module", [nn.Embedding(4, 3), nn.LSTM(4, 3)], ids=["Embedding", "LSTM"])
def test_layers_without_input_features_are_refused_by_name(module):
    with pytest.raises(ConfigurationError, match=r"not defined for layer\.weight.*add exclude='layer\.weight"):
        watched(module, "input_norm")


def test_noise_depends_on_the_seed_and_the_name_alone():
    first, again = watched(nn.Linear(4, 3), "noise"), watched(nn.Linear(4, 3), "noise")
    torch.rand(7)
    assert torch.equal(first.of(0)["noise"], again.of(0)["noise"])
    assert torch.equal(first.of(0)["noise"], first.of(0)["noise"])
    assert not torch.equal(first.of(0)["noise"], watched(nn.Linear(4, 3), "noise", seed=1).of(0)["noise"])
    two = Statistics(select(nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), include="*"), ["noise"], 0)
    assert not torch.equal(two.of(0)["noise"], two.of(1)["noise"])


def test_reading_what_was_not_declared_says_how_to_declare_it():
    with pytest.raises(ConfigurationError, match=r"statistics\['fisher'\].*@needs\('fisher'\)"):
        watched(nn.Linear(4, 3), "taylor").of(0)["fisher"]


def test_needing_what_does_not_exist_lists_what_does():
    with pytest.raises(ConfigurationError, match="hessian") as caught:
        watched(nn.Linear(4, 3), "hessian")
    assert all(name in str(caught.value) for name in NAMES)


def test_ranks_agree_after_reduction():
    ranks = [watched(nn.Linear(4, 3), "input_norm") for _ in range(2)]
    for statistics, batch in zip(ranks, batches(2, 4, count=2), strict=True):
        statistics._targets[0].module(batch)
    squares = [statistics.of(0)["input_norm"].square() for statistics in ranks]
    ranks[0].reduce(lambda square: (square + squares[1].flatten()) / 2)
    torch.testing.assert_close(ranks[0].of(0)["input_norm"], ((squares[0] + squares[1]) / 2).sqrt())


def test_state_goes_to_a_fresh_object_and_back():
    module, [batch] = nn.Linear(4, 3), batches(2, 4, count=1)
    statistics = watched(module, "movement", "input_norm")
    module(batch)
    statistics.observe_gradient(0, torch.ones(3, 4), module.weight)
    fresh = watched(nn.Linear(4, 3), "movement", "input_norm")
    fresh.load_state_dict(statistics.state_dict())
    for name in ("movement", "input_norm"):
        assert torch.equal(fresh.of(0)[name], statistics.of(0)[name])


@pytest.mark.parametrize("state", [{}, {"movement": {}}, {"movement": {"layer.weight": torch.zeros(2, 2)}}])
def test_state_of_another_run_is_refused(state):
    with pytest.raises(CheckpointError, match=r"'movement' statistic of shape \[3, 4\] for layer\.weight"):
        watched(nn.Linear(4, 3), "movement").load_state_dict(state)
