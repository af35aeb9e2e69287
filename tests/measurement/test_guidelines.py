"""Guidelines: found where they are broken by construction, silent where they are kept."""

import dataclasses
import math
from collections import defaultdict

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import ConfigurationError
from lightning_compress.measurement import Finding, check_guidelines
from lightning_compress.measurement.operator_times import OperatorTimes, profile_operators
from lightning_compress.measurement.scopes import undisturbed
from lightning_compress.measurement.structure import has_structure, unstructured_zeros
from lightning_compress.measurement.widths import read_widths
from tests.quantization.quantized import IDS, mlp, quantize_, random


def found(model, *args, **kwargs):
    return {(finding.guideline, finding.layer): finding for finding in check_guidelines(model, *args, **kwargs)}


def wide(inner, *, outer=256):
    """Equal widths outside, one pair of layers between them."""
    layers = [nn.Linear(outer, outer), nn.Linear(outer, inner), nn.Linear(inner, outer), nn.Linear(outer, outer)]
    return nn.Sequential(*layers).eval()


def test_unequal_widths_cost_memory_by_the_published_formula():
    tensor = random(512, 256)
    findings = found(wide(2048), tensor)
    finding = findings["G1", "*"] if ("G1", "*") in findings else findings["G1", "1"]
    places, narrow, broad = 512, 256, 2048
    even = math.sqrt(narrow * broad)
    excess = (places * (narrow + broad) + narrow * broad) / (2 * places * even + narrow * broad) - 1
    assert f"{100 * excess:.0f} %" in finding.finding
    assert "512 places" in finding.finding
    assert f"{even:.0f} on both sides" in finding.advice
    assert 0.0 < finding.share_of_time <= 1.0


def test_equal_widths_are_fine_and_the_ends_of_the_model_are_the_tasks():
    assert not [key for key in found(wide(256), random(512, 256)) if key[0] == "G1"]
    ends = nn.Sequential(nn.Linear(2048, 64), nn.Linear(64, 64), nn.Linear(64, 2048))
    assert not [key for key in found(ends, random(2048, 2048)) if key[0] == "G1"]


def test_groups_cost_memory_but_depthwise_convolutions_are_element_wise(monkeypatch):
    layers = [
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, 3, groups=16),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.Conv2d(64, 64, 1),
    ]
    model = nn.Sequential(*layers).eval()
    findings = found(model, random(1, 64, 32, 32))
    finding = findings["G2", "1"]
    weight, read, written = 64 * 64 * 9 // 16, 64 * 1024, 64 * 900
    excess = (read + written + weight) / ((read + written) / 4 + weight) - 1
    assert f"{100 * excess:.0f} %" in finding.finding
    assert "groups=1 with 16 inputs and 16 outputs" in finding.advice
    assert ("G2", "2") not in findings
    layers = {"": 100.0, "0": 20.0, "1": 40.0, "2": 30.0, "3": 10.0}
    timed(monkeypatch, [(name, "conv2d", layers[name]) for name in "0123"], layers)
    findings = found(model, random(1, 64, 8, 8))
    assert "depthwise" in findings["G4", "2"].finding
    assert findings["G4", "2"].share_of_time == 0.3
    assert [key for key in findings if key[0] == "G4"] == [("G4", "2")]


def test_fragments_are_found_in_the_block_that_has_them():
    class Fragmented(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(60))

        def forward(self, tensor):
            return sum(branch(tensor) for branch in self.branches)

    model = nn.Sequential(nn.Linear(4, 4), Fragmented(), nn.Linear(4, 4))
    finding = found(model, random(2, 4))["G3", "1"]
    assert finding.share_of_time > 0.3
    large = nn.Sequential(*[nn.Linear(512, 512) for _ in range(20)])
    assert not [key for key in found(large, random(256, 512)) if key[0] == "G3"]


def timed(monkeypatch, operators, layers, calls=1):
    """Times as if they had been measured."""
    times = OperatorTimes(calls=calls, total=layers[""], layers=defaultdict(float, layers), operators=operators)
    monkeypatch.setattr("lightning_compress.measurement.guidelines.profile_operators", lambda *_: times)


def test_element_wise_operators_are_found_at_their_layer(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)).eval()
    operators = [("0", "linear", 500.0), ("1", "gelu", 200.0), ("2", "batch_norm", 60.0), ("3", "relu_", 40.0)]
    timed(monkeypatch, operators, {"": 1000.0, "0": 500.0, "1": 210.0})
    findings = found(model, random(4, 8))
    assert {key: finding.share_of_time for key, finding in findings.items()} == {("G4", "1"): 0.2, ("G4", "2"): 0.06}
    assert "element-wise operator gelu" in findings["G4", "1"].finding
    assert "ReLU" in findings["G4", "1"].advice
    assert "fold_batchnorm" in findings["G4", "2"].advice


def test_the_profiler_sees_the_operators_of_each_layer():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    with undisturbed(model):
        times = profile_operators(model, (random(20_000, 8),), {}, "test")
    assert [own[:2] for own in times.operators] == times.calls * [("0", "linear"), ("1", "gelu"), ("2", "linear")]
    assert times.total == times.layers[""] >= times.layers["0"] + times.layers["1"] + times.layers["2"]
    assert all(own[2] > 0 for own in times.operators)
    assert not [key for key in found(nn.Linear(512, 512), random(512, 512)) if key[0] == "G4"]


@pytest.mark.parametrize(("small", "large", "share"), [(15, 0, None), (16, 0, 1.0), (16, 16, 0.84), (16, 17, None)])
def test_fragments_are_counted_by_call_and_cost_what_larger_operators_leave(monkeypatch, small, large, share):
    model = nn.Sequential(nn.ModuleDict({"block": nn.Linear(2, 2)}))
    monkeypatch.setattr("lightning_compress.measurement.guidelines.read_widths", lambda *_: [])
    operators = [("0.block", "linear", 19.0)] * 2 * small + [("0.block", "linear", 50.0)] * 2 * large
    operators += [("0.block", "view", 1.0)] * 100
    timed(monkeypatch, operators, {"": 10_000.0, "0.block": 10_000.0}, calls=2)
    findings = [finding for finding in check_guidelines(model) if finding.guideline == "G3"]
    assert [(finding.layer, finding.share_of_time) for finding in findings] == ([("0.block", share)] if share else [])


def pruned(model, layers, share):
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        with torch.no_grad():
            layer.weight[torch.rand(layer.weight.shape, generator=generator) < share] = 0.0
    return model


def test_like_layers_share_a_finding():
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(config).eval()
    pruned(model, [layer.output.dense for layer in model.bert.encoder.layer], 0.8)
    pruned(model, [model.bert.encoder.layer[1].intermediate.dense], 0.5)
    findings = {layer: own for (name, layer), own in found(model, IDS).items() if name == "sparsity"}
    assert set(findings) == {"bert.encoder.layer.*.output.dense", "bert.encoder.layer.1.intermediate.dense"}
    finding = findings["bert.encoder.layer.*.output.dense"]
    assert "this unstructured sparsity will not make it faster" in finding.finding
    assert finding.finding.startswith(("80 %", "79 % to 80 %", "79 % to 81 %", "80 % to 81 %"))
    assert 0.0 < finding.share_of_time < 1.0


@pytest.mark.parametrize("layer", [nn.Linear(8, 12), nn.Conv2d(8, 12, 3), nn.ConvTranspose1d(8, 12, 3)], ids=repr)
@pytest.mark.parametrize(("zero", "named"), [
    (lambda weight: weight[::2].zero_(), False), (lambda weight: weight[:, 1::2].zero_(), False),
    (lambda weight: weight.view(-1)[::3].zero_(), True), (lambda weight: weight.view(-1)[:9].zero_(), False),
], ids=["rows", "columns", "scattered", "few"])  # fmt: skip
def test_structure_is_told_from_none(layer, zero, named):
    with torch.no_grad():
        layer.weight.fill_(1.0)
        zero(layer.weight)
    assert bool(list(unstructured_zeros(layer))) == named


@pytest.mark.parametrize("layer", [nn.Linear(8, 12), nn.Conv2d(8, 12, 3)], ids=repr)
def test_two_of_four_is_a_structure(layer):
    mask = torch.zeros(12, 8, dtype=torch.bool)
    mask[:, [0, 3, 5, 6]] = True
    mask[::2] = torch.roll(mask[::2], 1, dims=1).view(6, 2, 4).roll(2, dims=2).reshape(6, 8)
    zeros = mask if layer.weight.dim() == 2 else mask[..., None, None].expand_as(layer.weight)
    expected = bool((mask.view(12, 2, 4).sum(-1) >= 2).all())
    assert has_structure(zeros) == expected
    mask[0, :] = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).bool()
    assert not has_structure(
        zeros.clone() if layer.weight.dim() == 2 else mask[..., None, None].expand_as(layer.weight)
    )


def test_what_quantization_rounds_to_zero_counts():
    model = mlp()
    assert not list(unstructured_zeros(model))
    quantize_(model, random(8, 64), weight_bits="ternary")
    assert [name for name, _, _ in unstructured_zeros(model)] == ["0", "2"]


def test_recurrent_attention_and_transposed_layers_are_looked_at():
    attention = pruned(nn.MultiheadAttention(8, 2), [], 0.5)
    with torch.no_grad():
        attention.in_proj_weight.view(-1)[::3] = 0.0
    assert [own[:2] for own in unstructured_zeros(attention)] == [("", "in_proj_weight")]
    recurrent = nn.LSTM(5, 4)
    with torch.no_grad():
        recurrent.weight_hh_l0.view(-1)[::3] = 0.0
    assert [own[1] for own in unstructured_zeros(recurrent)] == ["weight_hh_l0"]


def test_widths_are_read_over_all_calls_of_a_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, tensor):
            return self.layer(self.layer(tensor + 1)) + 1

    (reading,) = read_widths(Twice(), (random(3, 5, 8),), {}, "test")
    assert (reading.places, reading.numbers) == (30, 30 * 16 + 64)


def test_the_findings_fields_are_those_of_the_report():
    assert [field.name for field in dataclasses.fields(Finding)] == [
        "guideline", "layer", "finding", "share_of_time", "advice",
    ]  # fmt: skip


def test_the_most_costly_comes_first_and_the_model_stays_as_it_was():
    model = wide(1024)
    for layer, share in ((model[0], 0.3), (model[2], 0.6), (model[3], 0.9)):
        pruned(model, [layer], share)
    model.insert(1, nn.Identity())
    model.append(nn.BatchNorm1d(256)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shares = [finding.share_of_time for finding in check_guidelines(model, random(64, 256))]
    assert len(shares) > 1
    assert shares == sorted(shares, reverse=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_nothing_is_said_on_the_terminal(capfd):
    check_guidelines(wide(256), random(8, 256))
    captured = capfd.readouterr()
    assert captured.out + "".join(line for line in captured.err.splitlines() if "USDT" not in line) == ""


@pytest.mark.parametrize(("model", "inputs", "said"), [
    (mlp(), (random(3, 5),), "check_guidelines calls Sequential.* failed with the inputs given"),
    (nn.Sequential(nn.LazyLinear(4)), (random(3, 5),), r"0\.weight has no shape yet"),
    (nn.Linear(2, 2, device="meta"), (random(3, 2),), "meta device"),
    ("model", (), "takes modules"),
])  # fmt: skip
def test_what_cannot_be_checked_is_refused(model, inputs, said):
    with pytest.raises(ConfigurationError, match=said):
        check_guidelines(model, *inputs)
