"""LightningModules to train with: any Hugging Face model and task head, ready for the callbacks."""

from lightning_compress.modules.collate import collate_for
from lightning_compress.modules.distillation import DistillationModule
from lightning_compress.modules.transformer import TransformerModule

__all__ = ["DistillationModule", "TransformerModule", "collate_for"]
