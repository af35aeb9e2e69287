"""Recipes: longer experiments over whole models, out of the methods."""

from lightning_compress.recipes.budget import search_budget
from lightning_compress.recipes.budget_plans import Choice
from lightning_compress.recipes.budget_result import BudgetResult
from lightning_compress.recipes.compressions import Prune, Quantize
from lightning_compress.recipes.large_then_compress import train_large_then_compress
from lightning_compress.recipes.page import plot, read_result
from lightning_compress.recipes.results import Claim, Error, Moment, Point, Result, Training
from lightning_compress.recipes.run_image import plot_training
from lightning_compress.recipes.sensitivity import sensitivity
from lightning_compress.recipes.sensitivity_points import Sensitivity, SensitivityPoint
from lightning_compress.recipes.sizes import transformer_sizes
from lightning_compress.recipes.trained_compressions import Compress, PruneGradually, QuantizeAware

__all__ = [
    "BudgetResult",
    "Choice",
    "Claim",
    "Compress",
    "Error",
    "Moment",
    "Point",
    "Prune",
    "PruneGradually",
    "Quantize",
    "QuantizeAware",
    "Result",
    "Sensitivity",
    "SensitivityPoint",
    "Training",
    "plot",
    "plot_training",
    "read_result",
    "search_budget",
    "sensitivity",
    "train_large_then_compress",
    "transformer_sizes",
]
