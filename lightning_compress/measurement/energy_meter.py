"""Reads the counters of energy around a model that runs; the part that a measuring process does.

Like :mod:`lightning_compress.measurement.latency_worker`, which loads this file, it needs nothing of this package.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

MISSING = "the package zeus is missing: pip install 'lightning-compress[energy]'"


def meter(call: Callable[[], Any], *, seconds: float, device: str) -> dict[str, Any]:
    """Run something for a while between two readings of the counters.

    Args:
        call: one inference.
        seconds: how long.
        device: where it runs.

    Returns:
        ``joules`` by domain, ``calls`` and ``seconds``; or the ``reason`` why there are none.
    """
    try:
        devices, monitors = importlib.import_module("zeus.device"), importlib.import_module("zeus.monitor")
    except ImportError as error:
        return {
            "reason": MISSING if (error.name or "").split(".")[0] == "zeus" else f"zeus cannot be imported: {error}"
        }
    try:
        devices.get_cpus()  # the monitor would pass in silence over a processor whose counter it may not read
        without_cpu = None
    except Exception as error:  # of several classes, for no counter, no right to read it, or a broken one
        without_cpu = str(error).strip().rstrip(".")
    if not device.startswith("cuda"):
        if without_cpu is not None:
            return {"reason": without_cpu}
        return _run(monitors.ZeusMonitor(gpu_indices=[]), call, seconds, needed="CPU package")
    index = int(device.partition(":")[2] or 0)
    monitor = monitors.ZeusMonitor(gpu_indices=[index])
    if not monitor.gpus.supports_get_total_energy_consumption(index):
        return {"reason": f"GPU {index} has no counter of energy, only samples of its power"}
    return _run(monitor, call, seconds, needed=f"GPU {index}")


def _run(monitor: Any, call: Callable[[], Any], seconds: float, *, needed: str) -> dict[str, Any]:
    calls, began = 0, time.monotonic()
    monitor.begin_window("inference")
    while calls == 0 or time.monotonic() - began < seconds:
        call()
        calls += 1
    found = monitor.end_window("inference")
    joules = {f"CPU package {index}": value for index, value in (found.cpu_energy or {}).items()}
    joules |= {f"DRAM {index}": value for index, value in (found.dram_energy or {}).items()}
    joules |= {f"GPU {index}": value for index, value in found.gpu_energy.items()}
    if not any(value > 0 for name, value in joules.items() if name.startswith(needed)):
        return {"reason": f"the counter of {needed} did not move within {found.time:.2g} s"}
    return {"joules": joules, "calls": calls, "seconds": found.time}
