"""Recipes: longer experiments over whole models, out of the methods."""

from lightning_compress.recipes.sensitivity import sensitivity
from lightning_compress.recipes.sensitivity_points import Sensitivity, SensitivityPoint

__all__ = ["Sensitivity", "SensitivityPoint", "sensitivity"]
