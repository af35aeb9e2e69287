"""What a model costs and what it lost, measured: each function works alone. Torch and torchmetrics only."""

from lightning_compress.measurement.energy import Energy, measure_energy
from lightning_compress.measurement.fidelity import AnswerFidelity
from lightning_compress.measurement.fidelity_figures import Fidelity, Flip, Group, Pair
from lightning_compress.measurement.guidelines import Finding, check_guidelines
from lightning_compress.measurement.latency import measure_latency
from lightning_compress.measurement.operations import LayerOperations, Operations, count_operations
from lightning_compress.measurement.probe import LinearProbe, probe_layers
from lightning_compress.measurement.rates import compression_rate, index_space_saving, speedup_rate
from lightning_compress.measurement.similarity import LinearCKA, layer_similarity
from lightning_compress.measurement.size import LayerSize, Size, measure_size
from lightning_compress.measurement.timings import Latency, Timing
from lightning_compress.measurement.weight_errors import WeightError, compression_error

__all__ = [
    "AnswerFidelity",
    "Energy",
    "Fidelity",
    "Finding",
    "Flip",
    "Group",
    "Latency",
    "LayerOperations",
    "LayerSize",
    "LinearCKA",
    "LinearProbe",
    "Operations",
    "Pair",
    "Size",
    "Timing",
    "WeightError",
    "check_guidelines",
    "compression_error",
    "compression_rate",
    "count_operations",
    "index_space_saving",
    "layer_similarity",
    "measure_energy",
    "measure_latency",
    "measure_size",
    "probe_layers",
    "speedup_rate",
]
