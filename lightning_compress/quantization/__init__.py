"""Quantization: grids of integers, weights and activations on them, and layers that compute with both."""

from lightning_compress.quantization.convert import convert
from lightning_compress.quantization.model import Quantization
from lightning_compress.quantization.removal import remove
from lightning_compress.quantization.settings import Settings

__all__ = ["Quantization", "Settings", "convert", "remove"]
