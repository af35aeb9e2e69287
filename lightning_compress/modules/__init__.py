"""LightningModules to train with: any Hugging Face model and task head, ready for the callbacks."""

from lightning_compress.modules.transformer import TransformerModule, collate_for

__all__ = ["TransformerModule", "collate_for"]
