"""The layers of the compressed model, each beside the same one of the dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from lightning_compress.core import CompressionError
from lightning_compress.core.precision import input_bits
from lightning_compress.core.targets import plain_name
from lightning_compress.export.disk_size import DiskSize
from lightning_compress.measurement import Operations, measure_size
from lightning_compress.measurement.probe import probe_layers
from lightning_compress.measurement.similarity import layer_similarity
from lightning_compress.measurement.weight_errors import compression_error
from lightning_compress.quantization import remove
from lightning_compress.report.attempts import Attempts
from lightning_compress.report.compared import COMPRESSED, DENSE
from lightning_compress.report.given import Given
from lightning_compress.report.schema import Layer, Pair

_FEWEST = 2


def layers(
    modules: Mapping[str, nn.Module],
    networks: Mapping[str, nn.Module],
    given: Sequence[Given],
    attempts: Attempts,
    *,
    operations: Operations | None,
    disks: Mapping[str, DiskSize],
    probe: bool,
) -> tuple[Layer, ...]:
    """Every layer with parameters, in the model's order.

    Args:
        modules: whole, by ``"compressed"`` and, if it is known, ``"dense"``.
        networks: the parts of them that are called with ``given``.
        given: inputs, batch by batch, with labels where there are any.
        attempts: takes what fails.
        operations: of the compressed network.
        disks: of the whole modules, as far as they are known.
        probe: whether to train probes.
    """
    size = attempts.run("layers", lambda: measure_size(modules[COMPRESSED]))
    if size is None:
        return ()
    written = {name: {one.name: one for one in disk.layers} for name, disk in disks.items()}
    errors, alike, probes = {}, {}, {}
    prefix = _path(modules[COMPRESSED], networks.get(COMPRESSED))
    if DENSE in modules:
        errors = attempts.run("weight errors", lambda: _errors(modules)) or {}
    if DENSE in networks and given:
        alike = attempts.run("similarity", lambda: _similarity(networks, given)) or {}
    if probe and networks and given:
        probes = attempts.run("probes", lambda: _probes(networks, given)) or {}
    counted = {} if operations is None else {_joined(prefix, one.name): one for one in operations.layers}
    parts = {plain_name(name): part for name, part in modules[COMPRESSED].named_modules()}
    found = []
    for layer in size.layers:
        if not layer.parameters:
            continue
        inner = layer.name.removeprefix(f"{prefix}." if prefix else "")
        own = counted.get(layer.name)
        before, after = (written.get(one, {}).get(layer.name) for one in (DENSE, COMPRESSED))
        found.append(
            Layer(
                name=layer.name,
                kind=layer.kind,
                parameters=layer.parameters,
                nonzero=layer.nonzero,
                bits=layer.bits,
                input_bits=input_bits(parts[layer.name]),
                dense_bytes=None if before is None else before.dense,
                packed_bytes=None if after is None else after.packed,
                macs=None if own is None else own.macs,
                sparse_macs=None if own is None else own.sparse_macs,
                relative_error=errors.get(layer.name),
                similarity=alike.get(inner),
                probe=probes.get(inner),
            )
        )
    return tuple(found)


def _errors(modules: Mapping[str, nn.Module]) -> dict[str, float]:
    """Of the largest weight of each layer that both have."""
    found = compression_error(modules[DENSE], remove(modules[COMPRESSED]))
    errors: dict[str, float] = {}
    for name, error in found.items():
        errors.setdefault(name.rpartition(".")[0], error.relative)
    return errors


def _similarity(networks: Mapping[str, nn.Module], given: Sequence[Given]) -> dict[str, float]:
    return layer_similarity(networks[DENSE], networks[COMPRESSED], [replace(one, labels=None).batch() for one in given])


def _probes(networks: Mapping[str, nn.Module], given: Sequence[Given]) -> dict[str, Pair]:
    batches = [one.batch() for one in given if one.labels is not None]
    if len(batches) < _FEWEST:
        raise CompressionError(
            f"probes need {_FEWEST} labelled batches, to learn from and to judge by; there are {len(batches)}."
        )
    middle = (len(batches) + 1) // 2
    reached = {name: probe_layers(one, batches[:middle], batches[middle:]) for name, one in networks.items()}
    dense = reached.get(DENSE, {})
    return {name: Pair(dense[name], accuracy) for name, accuracy in reached[COMPRESSED].items() if name in dense}


def _path(module: nn.Module, network: nn.Module | None) -> str:
    return next((plain_name(name) for name, part in module.named_modules() if part is network), "")


def _joined(prefix: str, name: str) -> str:
    return ".".join(part for part in (prefix, name) if part)
