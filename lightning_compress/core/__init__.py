"""What every method stands on: which parameters may be touched, and how errors are told. Torch only."""

from lightning_compress.core.errors import (
    CheckpointError,
    CompressionError,
    ConfigurationError,
    MissingExtraError,
    TargetError,
)
from lightning_compress.core.targets import Target, select

__all__ = [
    "CheckpointError",
    "CompressionError",
    "ConfigurationError",
    "MissingExtraError",
    "Target",
    "TargetError",
    "select",
]
