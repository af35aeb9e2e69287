"""Lightning callbacks: when each method acts."""

from lightning_compress.callbacks.compression import CompressionCallback
from lightning_compress.callbacks.compression_report import CompressionReport
from lightning_compress.callbacks.gradual_pruning import GradualPruning
from lightning_compress.callbacks.knowledge_distillation import KnowledgeDistillation
from lightning_compress.callbacks.order import Stage
from lightning_compress.callbacks.quantization_aware_training import QuantizationAwareTraining

__all__ = [
    "CompressionCallback",
    "CompressionReport",
    "GradualPruning",
    "KnowledgeDistillation",
    "QuantizationAwareTraining",
    "Stage",
]
