"""Energy of one inference, read from the counters of the machine, where it has any.

Zeus (https://ml.energy/zeus, the extra ``energy``) reads them: RAPL of processors and their memory, on Linux, and the
total-energy counter of NVIDIA and AMD GPUs. There is no estimate from a processor's name or its load.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_compress.measurement.energy_meter import MISSING
from lightning_compress.measurement.processes import Worker
from lightning_compress.measurement.shapes import Feed
from lightning_compress.measurement.subjects import Candidate, Inputs, Precision, Runtime, check, subject

__all__ = ["MISSING", "Energy", "measure_energy"]


@dataclass(frozen=True)
class Energy:
    """What :func:`measure_energy` found.

    Attributes:
        joules: of one inference, that is one call, over all domains; ``None`` if it was not measured.
        joules_per_example: the same by the batch size.
        domains: joules of one inference by what was metered, ``"CPU package 0"``, ``"DRAM 0"``, ``"GPU 0"``.
        calls: how many were metered.
        seconds: how long they took.
        reason: why it was not measured.
    """

    joules: float | None
    joules_per_example: float | None
    domains: Mapping[str, float] = field(default_factory=dict)
    calls: int = 0
    seconds: float = 0.0
    reason: str | None = None

    def __str__(self) -> str:
        if self.joules is None:
            return f"not measured: {self.reason}"
        parts = ", ".join(f"{name} {joules:.3g} J" for name, joules in self.domains.items())
        return f"{self.joules:.3g} J an inference ({parts}; {self.calls} calls in {self.seconds:.1f} s)"


def measure_energy(
    candidate: Candidate,
    inputs: Inputs,
    *,
    runtime: Runtime | None = None,
    threads: int = 1,
    device: str | None = None,
    precision: Precision = "f32",
    seconds: float = 5.0,
    timeout: float = 600.0,
) -> Energy:
    """Meter the energy of a model or an exported file while it runs without a pause.

    It runs in a process of its own, as for :func:`lightning_compress.measurement.latency.measure_latency`, whose
    arguments these are. The counters are those of whole packages: what other programs use meanwhile, and what the
    machine uses at rest, is counted too. So compare only figures of one quiet machine.

    Args:
        candidate: a module or other callable, or the path of an ``.onnx`` or ``.xml`` file.
        inputs: a tensor, a sequence of tensors, or a mapping by name.
        runtime: what runs it.
        threads: of the runtime.
        device: where a module runs. On a GPU its own counter is needed, and those of processors are added.
        precision: of what is not quantized, in OpenVINO.
        seconds: to meter; counters move only some ten to a thousand times a second.
        timeout: seconds that one answer of the process may take, beside the metering.

    Returns:
        The energy, or the reason why the machine cannot tell.

    Raises:
        ConfigurationError: an argument that cannot work.
        MissingExtraError: the runtime is not installed.
        CompressionError: the model cannot travel or fails on the inputs, or its process ends or hangs.

    Example:
        >>> import torch
        >>> energy = measure_energy(torch.nn.Linear(4, 4), torch.randn(2, 4), seconds=0.1)
        >>> energy.joules is None or energy.joules > 0  # None where the machine has no counter
        True
    """
    check(threads=threads, precision=precision, seconds=seconds, timeout=timeout)
    feed = Feed(inputs)
    with tempfile.TemporaryDirectory(prefix="lightning_compress_") as place:
        folder = Path(place)
        one = subject(
            candidate,
            argument="candidate",
            runtime=runtime,
            device=device,
            inputs_device=feed.device,
            threads=threads,
            precision=precision,
            folder=folder,
        )
        with Worker(one, folder=folder, timeout=timeout + seconds) as worker:
            worker.answer()
            worker.prepare(feed, folder)
            found = worker.ask(energy=seconds)
    if "reason" in found:
        return Energy(None, None, reason=found["reason"])
    domains = {name: joules / found["calls"] for name, joules in found["joules"].items()}
    total = sum(domains.values())
    return Energy(total, total / feed.batch, domains, found["calls"], found["seconds"])
