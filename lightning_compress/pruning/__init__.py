"""Pruning: which weights become zero, how many, and when they stay so."""

from lightning_compress.pruning.criteria import CRITERIA, needs
from lightning_compress.pruning.masks import keep_largest
from lightning_compress.pruning.patterns import Pattern, parse_pattern
from lightning_compress.pruning.pruner import Pool, Pruner
from lightning_compress.pruning.schedule import SCHEDULES

__all__ = ["CRITERIA", "SCHEDULES", "Pattern", "Pool", "Pruner", "keep_largest", "needs", "parse_pattern"]
