"""Compression for people who train with PyTorch Lightning."""

from lightning_compress.callbacks import GradualPruning
from lightning_compress.core.errors import (
    CheckpointError,
    CompressionError,
    ConfigurationError,
    MissingExtraError,
    TargetError,
)
from lightning_compress.core.targets import targets
from lightning_compress.export import load_compressed, save_compressed
from lightning_compress.modules import TransformerModule

__all__ = [
    "CheckpointError",
    "CompressionError",
    "ConfigurationError",
    "GradualPruning",
    "MissingExtraError",
    "TargetError",
    "TransformerModule",
    "load_compressed",
    "save_compressed",
    "targets",
]
