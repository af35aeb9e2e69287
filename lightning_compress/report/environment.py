"""What the figures of a report depend on beside the models."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("lightning-compress", "torch", "pytorch-lightning", "transformers", "onnxruntime", "openvino")
_CPU_FILE = Path("/proc/cpuinfo")


def environment() -> dict[str, str]:
    """Versions of packages, the processor and what it may use, and the GPU if there is one."""
    found = {package: installed for package in _PACKAGES if (installed := _version(package)) is not None}
    found |= {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {"processor": _processor(), "cores": str(_cores()), "torch threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    if _CPU_FILE.exists():
        for line in _CPU_FILE.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
