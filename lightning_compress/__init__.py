"""Compression for people who train with PyTorch Lightning."""

from lightning_compress.callbacks import GradualPruning, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.checkpoint import load_from_checkpoint
from lightning_compress.core.errors import (
    CheckpointError,
    CompressionError,
    ConfigurationError,
    MissingExtraError,
    TargetError,
)
from lightning_compress.core.logs import show_logs
from lightning_compress.core.targets import targets
from lightning_compress.export import export, load_compressed, save_compressed
from lightning_compress.modules import DistillationModule, TransformerModule
from lightning_compress.post_training import quantize
from lightning_compress.quantization import convert, remove

__all__ = [
    "CheckpointError",
    "CompressionError",
    "ConfigurationError",
    "DistillationModule",
    "GradualPruning",
    "KnowledgeDistillation",
    "MissingExtraError",
    "QuantizationAwareTraining",
    "TargetError",
    "TransformerModule",
    "convert",
    "export",
    "load_compressed",
    "load_from_checkpoint",
    "quantize",
    "remove",
    "save_compressed",
    "targets",
]

show_logs()
