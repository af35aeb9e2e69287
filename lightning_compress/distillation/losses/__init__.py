"""Distillation losses with their settings: what is given to a callback or module."""

from lightning_compress.distillation.losses.contrastive import Contrastive
from lightning_compress.distillation.losses.exits import DeepToShallow
from lightning_compress.distillation.losses.features import AttentionTransfer, Flow, Hint, NeuronSelectivity
from lightning_compress.distillation.losses.relations import RKD, Correlation, SimilarityPreserving
from lightning_compress.distillation.losses.response import DIST, DecoupledKD, LogitMSE, SoftTargets
from lightning_compress.distillation.losses.sequences import SequenceKD
from lightning_compress.distillation.losses.transformers import AttentionMaps, HiddenStates, MiniLMRelations

__all__ = [
    "DIST",
    "RKD",
    "AttentionMaps",
    "AttentionTransfer",
    "Contrastive",
    "Correlation",
    "DecoupledKD",
    "DeepToShallow",
    "Flow",
    "HiddenStates",
    "Hint",
    "LogitMSE",
    "MiniLMRelations",
    "NeuronSelectivity",
    "SequenceKD",
    "SimilarityPreserving",
    "SoftTargets",
]
