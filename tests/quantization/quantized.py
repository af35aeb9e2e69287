"""Small models of every kind of layer, quantized the way a callback would, without training."""

import torch
from torch import nn

from lightning_compress.core import select
from lightning_compress.quantization import Quantization, Settings
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.watching import alone

DEFAULTS = {
    "weight_bits": 8,
    "activation_bits": 8,
    "weight_granularity": "per_channel",
    "group_size": None,
    "activation_scheme": "asymmetric",
    "method": "minmax",
    "power_of_two": False,
}
# Every way in which weights are quantized.
WAYS = {
    "8 bits": {},
    "4 bits": {"weight_bits": 4},
    "3 bits per tensor": {"weight_bits": 3, "weight_granularity": "per_tensor"},
    "4 bits per group": {"weight_bits": 4, "weight_granularity": "per_group", "group_size": 4},
    "5 bits power of two": {"weight_bits": 5, "power_of_two": True},
    "6 bits mse": {"weight_bits": 6, "method": "mse"},
    "7 bits percentile": {"weight_bits": 7, "method": "percentile"},
    "2 bits": {"weight_bits": 2},
    "2 bits learned": {"weight_bits": 2, "method": "lsq"},
    "8 bits learned": {"method": "lsq"},
    "float8": {"weight_bits": "float8"},
    "ternary": {"weight_bits": "ternary"},
    "ttq": {"weight_bits": "ttq"},
    "binary": {"weight_bits": "binary"},
    "binaryconnect": {"weight_bits": "binaryconnect"},
}


def quantize_(
    model, *batch, include=None, attention=False, fold_batchnorm=True, residual_sums=True, steps=2, **settings
):
    """Watch a batch, quantize, watch some more, freeze; the model ends in evaluation."""
    targets = select(model, include=include, recurrent=True)
    wanted = Settings(**DEFAULTS | settings)
    quantization = Quantization(
        model,
        targets,
        wanted,
        overrides={},
        attention=attention,
        fold_batchnorm=fold_batchnorm,
        residual_sums=residual_sums,
    )
    model.train()
    quantization.watch_()
    for step in range(steps):
        with torch.no_grad():
            call(model, *batch)
        if step == 0:
            quantization.activate_(alone)
        else:
            quantization.advance_(alone, refresh_every=1)
    quantization.freeze_()
    model.eval()
    return quantization


def call(model, *batch):
    output = model(*batch)
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, tuple) else output


def evaluated(model, *batch):
    with torch.no_grad():
        return call(model.eval(), *batch)


def without_activation_quantizers(model):
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.active = False
    return model


def mlp(*, inputs=64, hidden=32, outputs=16):
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs), nn.ReLU(), nn.Linear(outputs, 3)]
    return nn.Sequential(*layers)


def cnn():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 4, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 8),
        nn.Linear(8, 3),
    )
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return model


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.recurrent(self.words(ids))[0])


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    return BertForSequenceClassification(config)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


IDS = torch.arange(24).view(3, 8) % 20
