"""The most bytes alive at a time, by hand."""

import torch
from torch import nn

from lightning_compress.measurement import count_operations
from tests.quantization.quantized import mlp, quantize_, random

KILO = 4 * 1000  # bytes of a thousand float32


class Chain(nn.Module):
    def forward(self, tensor):
        for _ in range(10):
            tensor = torch.relu(tensor)
        return tensor


class Branches(nn.Module):
    def forward(self, tensor):
        first, second, third = tensor + 1, tensor + 2, tensor + 3
        return first + second + third


class InPlace(nn.Module):
    def forward(self, tensor):
        return torch.relu(tensor).add_(1).mul_(2).view(10, 100).T


def peak(model, *inputs):
    return count_operations(model, *inputs).peak_activation_bytes


def test_what_is_freed_does_not_count():
    assert peak(Chain(), random(1000)) == 3 * KILO  # the input, what is read, what is written
    assert peak(Branches(), random(1000)) == 6 * KILO
    assert peak(InPlace(), random(1000)) == 2 * KILO


def test_parameters_do_not_count_and_layers_know_their_share():
    model = nn.Sequential(nn.Linear(1000, 10, bias=False), nn.ReLU(), nn.Linear(10, 2000, bias=False))
    operations = count_operations(model, random(1, 1000))
    assert [layer.peak_activation_bytes for layer in operations.layers] == [KILO + 40, KILO + 80, KILO + 40 + 2 * KILO]
    assert operations.peak_activation_bytes == KILO + 40 + 2 * KILO


def test_an_unused_input_is_alive_too():
    class First(nn.Module):
        def forward(self, first, second):
            return first + 1

    assert peak(First(), random(1000), random(2000)) == 4 * KILO


def test_a_rounded_tensor_takes_the_room_of_the_one_it_stands_for():
    model = mlp(inputs=1000, hidden=1000, outputs=1000).eval()
    dense = peak(model, random(2, 1000))
    quantize_(model, random(2, 1000), weight_bits=4)
    assert peak(model, random(2, 1000)) == dense


def test_it_keeps_that_room_when_the_other_is_gone():
    class Quantizer(nn.Module):
        def simulated_bits(self):
            return 8

        def forward(self, tensor):
            return torch.round(tensor)

    class Forgets(nn.Module):
        def __init__(self, rounds):
            super().__init__()
            self.rounds = rounds

        def forward(self, tensor):
            tensor = self.rounds(tensor * 2)
            return torch.cat([tensor, tensor])

    assert peak(Forgets(nn.Identity()), random(1000)) == 4 * KILO
    assert peak(Forgets(Quantizer()), random(1000)) == 4 * KILO
