"""What can be asked of quantization, and which values are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from lightning_compress.core import ConfigurationError

WeightFormat = Literal["float8", "ternary", "ttq", "binary", "binaryconnect"]
Granularity = Literal["per_tensor", "per_channel", "per_group"]
Scheme = Literal["asymmetric", "symmetric"]
Method = Literal["minmax", "percentile", "mse", "lsq", "lsq+", "pact"]

_BITS = range(2, 9)
_SMALLEST_GROUP = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one layer is quantized; no defaults, which stand on the callback.

    Attributes:
        weight_bits: 2 to 8, or a format with a scale of its own: ``"float8"`` (e4m3), ``"ternary"`` (TWN), ``"ttq"``,
            ``"binary"`` (XNOR-Net) or ``"binaryconnect"``.
        activation_bits: 2 to 8, ``"float8"``, or ``None`` to leave activations as they are.
        weight_granularity: what shares a scale: the whole weight, the weights of one output, or ``group_size`` of them.
        group_size: neighbouring inputs that share a scale under ``"per_group"``.
        activation_scheme: unsigned integers with a zero point, or signed ones without. ``"lsq"`` and ``"pact"`` have no
            zero point either way: they take unsigned integers where no input is negative, and signed ones elsewhere.
        method: where ranges come from: the data (``"minmax"``, ``"percentile"``, ``"mse"``) or training (``"lsq"``,
            ``"lsq+"``: weights and activations; ``"pact"``: activations alone).
        power_of_two: scales are powers of two (fixed point).

    Raises:
        ConfigurationError: a value that cannot work, or two that cannot work together.
    """

    weight_bits: int | WeightFormat
    activation_bits: int | Literal["float8"] | None
    weight_granularity: Granularity
    group_size: int | None
    activation_scheme: Scheme
    method: Method
    power_of_two: bool

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_bits("weight_bits", self.weight_bits, get_args(WeightFormat))
        _check_bits("activation_bits", self.activation_bits, (None, "float8"))
        for name, allowed in {"weight_granularity": Granularity, "activation_scheme": Scheme, "method": Method}.items():
            if getattr(self, name) not in get_args(allowed):
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r} is none of {', '.join(map(repr, get_args(allowed)))}."
                )
        if type(self.power_of_two) is not bool:
            raise ConfigurationError(f"power_of_two={self.power_of_two!r} is neither True nor False.")
        self._check_group_size()
        self._check_method()
        if self.power_of_two:
            self._check_power_of_two()

    @property
    def learns(self) -> bool:
        """Whether some range is trained."""
        return self.method in ("lsq", "lsq+", "pact")

    def quantizes_inputs_like(self, other: Settings) -> bool:
        """Whether the inputs of a layer get the same kind of quantizer."""
        names = ("activation_bits", "activation_scheme", "method", "power_of_two")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def override(self, changes: Mapping[str, Any]) -> Settings:
        """The same but for some values.

        Args:
            changes: values by name.

        Raises:
            ConfigurationError: no such setting, or a value that cannot work.
        """
        names = [field.name for field in fields(self)]
        unknown = [name for name in changes if name not in names]
        if unknown:
            raise ConfigurationError(f"overrides: {unknown[0]!r} is no setting; there are {', '.join(names)}.")
        return replace(self, **changes)

    def _check_group_size(self) -> None:
        grouped = self.weight_granularity == "per_group"
        if grouped and (type(self.group_size) is not int or self.group_size < _SMALLEST_GROUP):
            raise ConfigurationError(
                f"weight_granularity='per_group' needs group_size=, 32 say; group_size={self.group_size!r} is none."
            )
        if not grouped and self.group_size is not None:
            raise ConfigurationError(
                f"group_size={self.group_size!r} has no effect with weight_granularity={self.weight_granularity!r}; "
                "write weight_granularity='per_group'."
            )

    def _check_method(self) -> None:
        if self.learns and "float8" in (self.weight_bits, self.activation_bits):
            raise ConfigurationError(f"method={self.method!r} learns steps between integers; float8 needs 'minmax'.")
        if self.method == "mse" and self.activation_bits == "float8":
            raise ConfigurationError(
                "method='mse' searches ranges of integers; activation_bits='float8' needs 'minmax'."
            )
        if self.method == "pact" and self.activation_bits is None:
            raise ConfigurationError("method='pact' learns the bounds of activations, but activation_bits=None.")
        if self.method == "lsq+" and self.activation_scheme == "symmetric":
            raise ConfigurationError(
                "method='lsq+' learns an offset, which activation_scheme='symmetric' has not; write method='lsq'."
            )
        if self.method != "minmax" and isinstance(self.weight_bits, str) and self.activation_bits is None:
            raise ConfigurationError(
                f"method={self.method!r} has no effect: weight_bits={self.weight_bits!r} has a scale of its own, and "
                "activation_bits=None; write method='minmax'."
            )

    def _check_power_of_two(self) -> None:
        if self.learns:
            raise ConfigurationError(
                f"power_of_two=True and method={self.method!r}: a learned step is no power of two; leave one out."
            )
        if isinstance(self.weight_bits, str) and self.weight_bits != "float8":
            raise ConfigurationError(
                f"power_of_two=True: the scales of weight_bits={self.weight_bits!r} are no powers of two; leave it out."
            )


def _check_bits(name: str, bits: Any, words: tuple[Any, ...]) -> None:
    if type(bits) is int and bits in _BITS:
        return
    if bits not in words:
        raise ConfigurationError(
            f"{name}={bits!r}: write {_BITS.start} to {_BITS.stop - 1}, or one of {', '.join(map(repr, words))}."
        )
