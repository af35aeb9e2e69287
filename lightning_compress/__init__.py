"""Compression for people who train with PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

from lightning_compress.callbacks import (
    CompressionReport,
    GradualPruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
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
from lightning_compress.post_training import quantize
from lightning_compress.quantization import convert, remove

if TYPE_CHECKING:
    from lightning_compress.modules import DistillationModule, TransformerModule

__all__ = [
    "CheckpointError",
    "CompressionError",
    "CompressionReport",
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


def __getattr__(name: str) -> Any:
    # What stands on transformers comes when it is asked for: importing that takes long, and loads torchao, which talks.
    if name in ("DistillationModule", "TransformerModule"):
        from lightning_compress import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
