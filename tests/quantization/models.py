"""Small models, and the shortest way to quantize them."""

import torch

from lightning_compress.core import select
from lightning_compress.quantization import Quantization, Settings
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


def quantized(
    model, batch, *, include=None, attention=True, overrides=None, fold_batchnorm=True, residual_sums=False, **settings
):
    """A model that quantizes, after one training batch was watched; ``batch`` is what the model is called with."""
    quantization = Quantization(
        model,
        select(model, include=include, recurrent=True),
        Settings(**DEFAULTS | settings),
        overrides=overrides or {},
        attention=attention,
        fold_batchnorm=fold_batchnorm,
        residual_sums=residual_sums,
    )
    model.train()
    quantization.watch_()
    with torch.no_grad():
        call(model, batch)
    quantization.activate_(alone)
    return quantization


def call(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(*batch)
