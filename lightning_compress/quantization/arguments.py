"""Arguments that are refused before anything is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_compress.core import ConfigurationError
from lightning_compress.core.targets import as_patterns
from lightning_compress.quantization.settings import Settings


def check_arguments(
    wanted: Settings,
    *,
    fold_batchnorm: Any,
    attention: Any,
    residual_sums: Any,
    include: Any,
    exclude: Any,
    overrides: Any,
) -> None:
    """Refuse what cannot work beside the settings of the layers, which have been checked.

    Args:
        wanted: the settings of all layers.
        fold_batchnorm: as given to ``QuantizationAwareTraining``.
        attention: likewise.
        residual_sums: likewise.
        include: likewise.
        exclude: likewise.
        overrides: likewise.

    Raises:
        ConfigurationError: names the argument, its value and what was expected.
    """
    for argument, switch in {"fold_batchnorm": fold_batchnorm, "attention": attention}.items():
        if not isinstance(switch, bool):
            raise ConfigurationError(f"QuantizationAwareTraining({argument}={switch!r}): expected True or False.")
    if not isinstance(residual_sums, bool) and residual_sums != "auto":
        raise ConfigurationError(
            f"QuantizationAwareTraining(residual_sums={residual_sums!r}): expected True, False or 'auto'."
        )
    for argument, asked in {"attention": attention, "residual_sums": residual_sums is True}.items():
        if asked and wanted.activation_bits is None:
            raise ConfigurationError(
                f"{argument}=True quantizes inputs, and activation_bits=None leaves them: drop one."
            )
    for argument, patterns in {"include": include, "exclude": exclude}.items():
        as_patterns([] if patterns is None else patterns, argument)
    if overrides is not None and not (
        isinstance(overrides, Mapping) and all(isinstance(changes, Mapping) for changes in overrides.values())
    ):
        raise ConfigurationError(
            f"overrides={overrides!r}: write a mapping from patterns to settings, such as "
            "{'*.layer.0.*': {'weight_bits': 8}}."
        )
    for changes in (overrides or {}).values():
        wanted.override(changes)
