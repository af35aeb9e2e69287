"""What a sensitivity analysis found, and the file in which it is kept while it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.recipes.sensitivity_plot import draw
from lightning_compress.recipes.weight_changes import Bits

Kind = Literal["sparsity", "bits", "rank"]

_FORMAT, _VERSION = "lightning_compress.sensitivity", 1
_KINDS: tuple[Kind, ...] = ("sparsity", "bits", "rank")


@dataclass(frozen=True)
class SensitivityPoint:
    """What one change of one layer did.

    Attributes:
        layer: the changed weight, as in ``named_parameters()``.
        kind: ``"sparsity"``, ``"bits"`` or ``"rank"``.
        value: the share of zeros, the bits of a weight, or the share of the full rank.
        score: what ``evaluate`` returned, all other layers being as they were.
    """

    layer: str
    kind: Kind
    value: float | Bits
    score: float


@dataclass(frozen=True)
class Sensitivity:
    """The score of a model with one layer changed at a time.

    Attributes:
        dense: the score of the model as it is.
        points: one a layer and change, in the model's order.
        higher_is_better: whether the score is one like accuracy, or one like a loss.
    """

    dense: float
    points: tuple[SensitivityPoint, ...]
    higher_is_better: bool

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a point, with ``dense`` and ``lost`` beside its own values: ``pandas.DataFrame(rows)`` takes it.

        ``lost`` is how much worse the score became: above 0 for less accuracy, or for a larger loss.
        """
        return [asdict(point) | {"dense": self.dense, "lost": self._lost(point)} for point in self.points]

    def most_sensitive(self, n: int = 5, *, by: Kind | None = None) -> list[tuple[str, float]]:
        """The layers that suffer most.

        Args:
            n: how many.
            by: look at changes of one kind alone.

        Returns:
            Layers, each with what it lost on average over its points, the worst first; a score that was no number
            counts as infinitely bad.

        Raises:
            ConfigurationError: ``n`` is no number of layers, or nothing of that kind was measured.
        """
        if type(n) is not int or n < 1:
            raise ConfigurationError(f"n={n!r}: write how many layers to name, 1 or more.")
        if by is not None and by not in {point.kind for point in self.points}:
            raise ConfigurationError(f"by={by!r} was not measured; write one of {', '.join(map(repr, self.kinds()))}.")
        losses: dict[str, list[float]] = {}
        for point in self.points:
            if by in (None, point.kind):
                lost = self._lost(point)
                losses.setdefault(point.layer, []).append(math.inf if math.isnan(lost) else lost)
        means = {layer: sum(each) / len(each) for layer, each in losses.items()}
        return sorted(means.items(), key=lambda item: -item[1])[:n]

    def kinds(self) -> list[Kind]:
        """What was varied."""
        return [kind for kind in _KINDS if any(point.kind == kind for point in self.points)]

    def plot(self, path: str | Path, *, title: str = "", number: str = "{:.3g}") -> Path:
        """Draw the table as a heat map: a row a layer, a column a change, dark where much is lost.

        Args:
            path: of the image; its ending says the format, ``.png`` or ``.svg`` say.
            title: above it.
            number: how the score lost is written into each cell, a format string.

        Returns:
            The path.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        losses = {(point.layer, point.kind, point.value): self._lost(point) for point in self.points}
        return draw(losses, Path(path), dense=self.dense, title=title, number=number)

    def _lost(self, point: SensitivityPoint) -> float:
        return self.dense - point.score if self.higher_is_better else point.score - self.dense


class PointsFile:
    """A JSON file that has every point as soon as it was measured.

    Args:
        path: of the file, made where there is none; ``None`` for no file.
        model: fingerprint of the model.
        settings: what was asked for.

    Attributes:
        dense: the score of the unchanged model, once known.
        points: those measured.

    Raises:
        CheckpointError: the file is of another model, of other settings, or no such file.
    """

    def __init__(self, path: Path | None, model: str, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._head = {"format": _FORMAT, "version": _VERSION, "model": model, "settings": dict(settings)}
        self.dense: float | None = None
        self.points: dict[tuple[str, str, Any], float] = {}
        if path is not None and path.exists():
            self._read(path)

    def save(self) -> None:
        """Write the file anew, aside and then into place: an interruption leaves the old one whole."""
        if self._path is None:
            return
        points = [{"layer": a, "kind": b, "value": c, "score": _written(d)} for (a, b, c), d in self.points.items()]
        content = self._head | {"dense": None if self.dense is None else _written(self.dense), "points": points}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f"{self._path.name}.part")
        aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        aside.replace(self._path)

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            is_ours = (content["format"], content["version"]) == (_FORMAT, _VERSION)
            points = {(one["layer"], one["kind"], one["value"]): _read(one["score"]) for one in content["points"]}
            dense = None if content["dense"] is None else _read(content["dense"])
            model, settings = content["model"], dict(content["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"path={str(path)!r} is no file of a sensitivity analysis, or a damaged one: {error!r}; name another."
            ) from error
        if not is_ours or model != self._head["model"]:
            what = "of another model" if is_ours else "of another version"
            raise CheckpointError(f"path={str(path)!r} is the analysis {what}; name another file, or delete it.")
        changed = _differing(settings, self._head["settings"])
        if changed:
            raise CheckpointError(
                f"path={str(path)!r} was begun with other settings ({changed}); name another file, delete it, or ask "
                "for the same again."
            )
        self.dense, self.points = dense, points


def _differing(before: Mapping[str, Any], now: Any) -> str:
    names: Iterable[str] = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name}: {before.get(name)} there, {now[name]} now" for name in names)


def _written(score: float) -> float | str:
    return score if math.isfinite(score) else str(score)  # JSON has no word for infinity


def _read(score: float | str) -> float:
    return float(score)
