"""``lightning-compress inspect``: what was done to the model in a file, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress import callbacks
from lightning_compress.cli.output import color, show, show_json, width
from lightning_compress.cli.reading import read
from lightning_compress.cli.weights import Contents, Weight
from lightning_compress.cli.zeros import pattern_of
from lightning_compress.core import Target
from lightning_compress.core.targets import matches_any
from lightning_compress.report.numbers import scaled, share, significant
from lightning_compress.report.plain import to_plain
from lightning_compress.report.table import text_table

SUMMARY = "what was done to a model, layer by layer"
DESCRIPTION = """Shows which compression callbacks left their state in a checkpoint, with the
settings that are not the defaults, and of each weight: its shape, the share of
zeros and the pattern in which they stand, and the bits in which it is stored.

Like layers share a line. Reads checkpoints of Lightning (weights-only ones
too), state dicts, .safetensors, files of save_compressed, ONNX and OpenVINO."""
EXAMPLES = """  lightning-compress inspect last.ckpt
  lightning-compress inspect model.safetensors.zst --all
  lightning-compress inspect last.ckpt --json | jq '.weights[] | select(.zeros > 0.5)'"""

_HEADS = ("weight", "layers", "shape", "parameters", "zeros", "pattern", "bits")
_SCHEDULE = ("start", "end", "every")


@dataclass(frozen=True)
class Line:
    """What is shown of one weight, or of several like ones."""

    name: str
    layers: int
    shape: tuple[int, ...]
    parameters: int
    zeros: tuple[float, float]
    pattern: str
    bits: str


def add_arguments(parser: Any) -> None:
    """Its options."""
    parser.add_argument(
        "file", metavar="FILE", help="checkpoint, file of weights, ONNX or OpenVINO file, or export folder"
    )
    parser.add_argument("--all", action="store_true", help="a line for each weight, instead of one for like layers")
    parser.add_argument(
        "--trust", action="store_true", help="let torch build any object a checkpoint holds; it can run code"
    )
    parser.add_argument("--json", action="store_true", help="every weight as JSON on standard output")


def run(given: Any) -> int:
    """Show the file."""
    contents = read(Path(given.file), trust=given.trust)
    trained = trained_bits(contents)
    lines = [_line(weight, trained.get(weight.name)) for weight in contents.weights]
    if given.json:
        show_json(_as_json(contents, lines))
        return 0
    done = [described(key, state) for key, state in contents.states.items()]
    show(f"{contents.path}: {contents.kind}, {scaled(contents.disk_bytes, 'B')}")
    show("\n".join(f"- {line}" for line in done) if done else "- no compression callback left its state in it")
    groups = lines if given.all else together(lines)
    rows = [_row(line) for line in groups]
    total = _row(_line_of_all(contents))
    show(f"\n{text_table(_HEADS, [rows, [total]], width=width(), color=color())}")
    return 0


def described(key: str, state: Mapping[str, Any]) -> str:
    """What a callback's state in a checkpoint says: the call that made it, and how far it came.

    Example:
        >>> described("GradualPruning{...}", {"settings": {"sparsity": 0.8, "end": 0.7}, "run": {"step": 3}})
        'GradualPruning(sparsity=0.8), 3 optimizer steps'
    """
    name = re.split(r"\W", key, maxsplit=1)[0]
    settings = _mapping(state, "settings")
    defaults = _defaults(name)
    changed = {
        word: value
        for word, value in settings.items()
        if value != defaults.get(word) and (word in defaults or word not in _SCHEDULE)
    }
    call = f"{name}({', '.join(f'{word}={value!r}' for word, value in changed.items())})"
    return call + _progress(state.get("run"))


def trained_bits(contents: Contents) -> dict[str, str]:
    """Bits to which ``QuantizationAwareTraining`` rounded weights that a checkpoint holds unrounded, by name."""
    found: dict[str, str] = {}
    for state in contents.states.values():
        settings, quantization = _mapping(state, "settings"), _mapping(_mapping(state, "method"), "quantization")
        if quantization.get("phase") not in ("active", "frozen"):
            continue
        names = {str(key).removesuffix("_quantizer") for key in _mapping(quantization, "quantizers")}
        overrides = _mapping(settings, "overrides")
        for weight in contents.weights:
            if weight.name in names:
                found[weight.name] = _bits_for(weight.name, settings.get("weight_bits"), overrides)
    return found


def together(lines: Sequence[Line]) -> list[Line]:
    """Like layers, whose names differ in numbers only, in one line."""
    groups: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        pattern = re.sub(r"\d+(?= of)", "*", line.pattern)
        name = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", line.name)
        groups.setdefault((name, line.shape, pattern, line.bits), []).append(line)
    return [
        members[0]
        if len(members) == 1
        else Line(
            str(name),
            len(members),
            members[0].shape,
            sum(line.parameters for line in members),
            (min(line.zeros[0] for line in members), max(line.zeros[1] for line in members)),
            str(pattern),
            members[0].bits,
        )
        for (name, _, pattern, _), members in groups.items()
    ]


def _line(weight: Weight, trained: str | None) -> Line:
    zeros = weight.zeros / weight.count if weight.count else 0.0
    pattern = "–" if weight.values is None else pattern_of(weight.values)
    bits = significant(weight.bits) if weight.bits % 1 else f"{weight.bits:.0f}"
    shown = bits if trained is None else f"{bits} (trained for {trained})"
    return Line(weight.name, 1, weight.shape, weight.count, (zeros, zeros), pattern, shown)


def _line_of_all(contents: Contents) -> Line:
    zeros = contents.zeros / contents.parameters if contents.parameters else 0.0
    bits = "–" if contents.bits is None else significant(contents.bits)
    return Line("in all", len(contents.weights), (), contents.parameters, (zeros, zeros), "", bits)


def _row(line: Line) -> list[str]:
    low, high = (share(value) for value in line.zeros)
    return [
        line.name,
        f"{line.layers:,}",
        " x ".join(map(str, line.shape)) or "",
        scaled(line.parameters),
        low if low == high else f"{low} to {high}",
        "" if line.pattern == "none" else line.pattern,
        line.bits,
    ]


def _defaults(name: str) -> dict[str, Any]:
    callback = getattr(callbacks, name, None)
    if not isinstance(callback, type):
        return {}
    parameters = signature(callback).parameters
    return {word: entry.default for word, entry in parameters.items() if entry.default is not Parameter.empty}


def _progress(run_state: Any) -> str:
    if not isinstance(run_state, Mapping) or "step" not in run_state:
        return ""
    text = f", {run_state['step']} optimizer steps"
    window = run_state.get("window")
    if isinstance(window, Mapping) and "start" in window and "end" in window:
        text += f", at work from step {window['start']} to {window['end']}"
    return text


def _mapping(state: Mapping[Any, Any], entry: str) -> Mapping[Any, Any]:
    """An entry of a state; empty where it is not there, or not what this package writes."""
    found = state.get(entry)
    return found if isinstance(found, Mapping) else {}


def _bits_for(name: str, bits: object, overrides: Mapping[Any, Any]) -> str:
    target = Target(name, nn.Module(), name.rpartition(".")[2])
    for pattern in overrides:
        if matches_any(target, str(pattern)):
            bits = _mapping(overrides, pattern).get("weight_bits", bits)
            break
    return str(bits)


def _as_json(contents: Contents, lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "file": str(contents.path),
        "kind": contents.kind,
        "disk_bytes": contents.disk_bytes,
        "callbacks": [
            {
                "name": re.split(r"\W", key, maxsplit=1)[0],
                "settings": to_plain(state.get("settings", {})),
                "run": to_plain(state.get("run")),
            }
            for key, state in contents.states.items()
        ],
        "weights": [
            {
                "name": line.name,
                "shape": list(line.shape),
                "parameters": line.parameters,
                "zeros": line.zeros[0],
                "pattern": line.pattern,
                "bits": weight.bits,
                "trained_for": trained_bits(contents).get(weight.name),
            }
            for weight, line in zip(contents.weights, lines, strict=True)
        ],
    }
