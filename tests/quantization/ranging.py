"""Activation quantizers that have seen something, and every way of quantizing activations."""

from lightning_compress.quantization.activations import activation_quantizer, merge
from lightning_compress.quantization.watching import alone
from tests.quantization.judges import settings

METHODS = ("minmax", "percentile", "mse", "lsq", "lsq+", "pact")
INTEGERS = [{"method": method, "activation_bits": bits} for method in METHODS for bits in (3, 8)]
SIGNED = [{"method": method, "activation_scheme": "symmetric"} for method in ("minmax", "percentile", "mse")]
FIXED_POINT = [{"activation_scheme": scheme, "power_of_two": True} for scheme in ("asymmetric", "symmetric")]
EVERY = [*INTEGERS, *SIGNED, *FIXED_POINT]
LEARNED = [{"method": method} for method in ("lsq", "lsq+", "pact")]


def watching(name="layer", **changes):
    quantizer = activation_quantizer(name, settings(**changes))
    quantizer.watching = quantizer.active = True
    return quantizer


def ranged(*batches, **changes):
    """An active quantizer that has seen batches, a step each."""
    quantizer = watching(**changes)
    for batch in batches:
        quantizer(batch)
        merge([quantizer], alone)
    return quantizer
