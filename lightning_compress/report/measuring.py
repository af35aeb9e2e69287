"""Two networks, measured side by side: everything of a report but the evaluation of their quality."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.export.disk_size import DiskSize, disk_size
from lightning_compress.export.failures import installed
from lightning_compress.measurement import Operations, check_guidelines, count_operations, measure_size
from lightning_compress.measurement.energy import MISSING, measure_energy
from lightning_compress.measurement.subjects import Runtime
from lightning_compress.quantization import remove
from lightning_compress.report.attempts import Attempts
from lightning_compress.report.compared import COMPRESSED, DENSE, Compared, evaluation
from lightning_compress.report.environment import environment
from lightning_compress.report.given import Given, Sample
from lightning_compress.report.layerwise import layers
from lightning_compress.report.schema import Applied, Curve, Finding, Model, Report
from lightning_compress.report.speed import Speeds, measure_speeds

_CHECKED = 8  # batches on which an exported file is compared with the model

_WHOLE = (
    "One example alone cannot be cut out of a batch for this network, so that operations, latency and memory are those "
    "of the first batch."
)


def build_report(
    *,
    title: str,
    applied: Sequence[Applied],
    baseline: str,
    modules: Mapping[str, nn.Module],
    compared: Compared,
    sample: Sample | None,
    monitor: str | None,
    runtimes: Sequence[Runtime] | None,
    probe: bool,
    curves: Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]],
    attempts: Attempts,
) -> Report:
    """Measure what is left, and put it all together.

    Args:
        title: the module's class.
        applied: what was done to it.
        baseline: what the dense model is, in words.
        modules: ``"compressed"``, and ``"dense"`` if it is known; left as they are.
        compared: what their evaluation came to.
        sample: inputs of the networks; ``None`` for the first example of the evaluation.
        monitor: the metric that was asked for.
        runtimes: where to measure latency; ``None`` for eager and what is installed.
        probe: whether to train probes.
        curves: steps and values by name.
        attempts: takes what fails.
    """
    networks = compared.networks or (modules if sample is not None else {})
    given, notes = attempts.run("sample", lambda: _one_example(sample, compared)) or (None, ())
    models = {name: _model(name, module, attempts) for name, module in modules.items()}
    disks = _disks(modules, attempts)
    for name, disk in disks.items():
        models[name] = replace(models[name], disk_bytes=disk.by_format)
    counted: dict[str, Operations | None] = {}
    speeds = Speeds()
    findings: tuple[Finding, ...] = ()
    if given is not None and networks:
        for name, network in networks.items():
            label = f"operations of the {name} model"
            counted[name] = attempts.run(label, partial(_counted, network, given))
            models[name] = _with_operations(models[name], counted[name])
        findings = attempts.run("guidelines", partial(_findings, networks[COMPRESSED], given)) or ()
        with TemporaryDirectory() as folder:
            checks = [given, *compared.given[: _CHECKED if sample is None else 0]]
            speeds = measure_speeds(networks, checks, runtimes, Path(folder), attempts)
        for name, joules in _joules(networks, given, attempts).items():
            models[name] = replace(models[name], joules=joules)
    for name, sizes in speeds.disk_bytes.items():
        models[name] = replace(models[name], disk_bytes={**models[name].disk_bytes, **sizes})
    return Report(
        title=title,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        environment=environment(),
        applied=tuple(applied),
        evaluation=evaluation(compared, monitor, attempts),
        baseline=baseline or "not known",
        dense=_measured(models.get(DENSE, Model(DENSE)), compared),
        compressed=_measured(models[COMPRESSED], compared),
        latency=speeds.latency,
        fidelity=compared.fidelity,
        layers=layers(
            modules,
            networks,
            compared.given,
            attempts,
            operations=counted.get(COMPRESSED),
            disks=disks,
            probe=probe,
        ),
        curves=tuple(Curve(name, *points) for name, points in curves.items()),
        findings=tuple(findings),
        notes=notes + speeds.notes,
        failures=tuple(attempts.failures),
        seconds={name: round(spent, 3) for name, spent in attempts.seconds.items()},
    )


def figures(report: Report) -> dict[str, float]:
    """The figures of a report as flat names and numbers, for a logger.

    Args:
        report: of a run.
    """
    found: dict[str, float | None] = {}
    for model in (report.dense, report.compressed):
        found |= {f"compression/{model.name}/{name}": value for name, value in model.metrics.items()}
        found |= {f"compression/{model.name}/bytes_{name}": float(size) for name, size in model.disk_bytes.items()}
        for name in ("parameters", "nonzero", "bits_per_weight", "macs", "sparse_macs", "peak_activation_bytes"):
            found[f"compression/{model.name}/{name}"] = getattr(model, name)
    for entry in report.latency:
        shape = f"batch_{entry.batch}" if entry.length is None else f"batch_{entry.batch}_length_{entry.length}"
        found[f"compression/speedup/{entry.runtime.replace(' ', '_')}/{shape}"] = entry.speedup
    if report.fidelity is not None:
        found |= {"compression/agreement": report.fidelity.agreement, "compression/kl": report.fidelity.kl}
    return {name: float(value) for name, value in found.items() if value is not None}


def _one_example(sample: Sample | None, compared: Compared) -> tuple[Given, tuple[str, ...]]:
    """With what a reader must know about it."""
    if sample is not None:
        return Given.of(sample), ()
    if not compared.given:
        raise ConfigurationError("no evaluation called the network, so nobody knows its inputs; give sample=.")
    whole = compared.given[0]
    one, network = whole.first(1), compared.networks.get(COMPRESSED)
    if network is None or _is_taken(one, network) or not _is_taken(whole, network):
        return one, ()
    return whole, (_WHOLE,)


def _is_taken(given: Given, network: nn.Module) -> bool:
    try:
        _counted(network, given)
    except CompressionError:
        return False
    return True


def _model(name: str, module: nn.Module, attempts: Attempts) -> Model:
    size = attempts.run(f"size of the {name} model", lambda: measure_size(module))
    model = Model(name)
    if size is None:
        return model
    return replace(
        model,
        parameters=size.parameters,
        nonzero=size.nonzero,
        bits_per_weight=size.bits_per_weight,
        memory_bytes=size.memory_bytes,
    )


def _disks(modules: Mapping[str, nn.Module], attempts: Attempts) -> dict[str, DiskSize]:
    found = {name: attempts.run(f"files of the {name} model", partial(disk_size, one)) for name, one in modules.items()}
    return {name: disk for name, disk in found.items() if disk is not None}


def _counted(network: nn.Module, given: Given) -> Operations:
    placed = _beside(network, given)
    return count_operations(network, *placed.arguments, **placed.keywords)


def _beside(network: nn.Module, given: Given) -> Given:
    """On the network's device."""
    parameter = next(network.parameters(), None)
    return given if parameter is None else given.on(parameter.device)


def _with_operations(model: Model, counted: Operations | None) -> Model:
    if counted is None:
        return model
    names = ("macs", "sparse_macs", "bops", "memory_access", "peak_activation_bytes")
    return replace(model, **{name: getattr(counted, name) for name in names})


def _findings(network: nn.Module, given: Given) -> tuple[Finding, ...]:
    plain = remove(network)
    placed = _beside(plain, given)
    return tuple(check_guidelines(plain, *placed.arguments, **placed.keywords))


def _joules(networks: Mapping[str, nn.Module], given: Given, attempts: Attempts) -> dict[str, float]:
    """Of one inference in PyTorch; the first model for which the machine cannot tell is the last one asked about."""
    found: dict[str, float] = {}
    if not installed("zeus"):
        attempts.note("energy", f"{MISSING}.")
        return found
    for name, network in networks.items():
        energy = attempts.run("energy", lambda: measure_energy(remove(network), _beside(network, given).sample()))  # noqa: B023
        if energy is None:
            break
        if energy.joules is None:
            attempts.note("energy", energy.reason or "the machine cannot tell.")
            break
        found[name] = energy.joules
    return found


def _measured(model: Model, compared: Compared) -> Model:
    return replace(model, metrics=compared.metrics.get(model.name, {}))
