"""The one exception family of this package."""

from __future__ import annotations


class CompressionError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigurationError(CompressionError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class TargetError(CompressionError, ValueError):
    """A pattern that matches no parameter, or a parameter that a method cannot touch."""


class CheckpointError(CompressionError, ValueError):
    """A checkpoint or file that is corrupt, foreign, or does not fit the model it is loaded into."""


class MissingExtraError(CompressionError, ImportError):
    """An optional dependency that is not installed; the message names the extra to install."""
