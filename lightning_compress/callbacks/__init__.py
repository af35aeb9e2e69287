"""Lightning callbacks: when each method acts."""

from lightning_compress.callbacks.compression import CompressionCallback
from lightning_compress.callbacks.gradual_pruning import GradualPruning
from lightning_compress.callbacks.order import Stage

__all__ = ["CompressionCallback", "GradualPruning", "Stage"]
