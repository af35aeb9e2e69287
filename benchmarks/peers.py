"""What ours is compared with: files of NNCF and plain exports, and fake quantization by Model Optimizer and torchao.

Each peer is imported where it is used. The extras of this package bring NNCF, OpenVINO, ONNX and torchao; Model
Optimizer is in none, and does not say that it needs ``requests``. No command here changes the installed torch.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.latency import Precision, Runtime, load

EXTRAS = "pip install -c constraints.txt -e '.[onnx,openvino,torchao]'"
MODEL_OPTIMIZER = "pip install -c constraints.txt nvidia-modelopt==0.47.0 requests"

OPSET = 21
CALIBRATION = 300  # examples, NNCF's own default

Inputs = Tensor | Mapping[str, Tensor]
Loader = Iterable[Any]
Route = Literal["torch", "onnx"]


def peer(name: str, install: str) -> Any:
    """A module of a peer.

    Raises:
        SystemExit: with the command that installs it, if it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{name} cannot be imported ({error}). Install it: {install}") from error


class Logits(nn.Module):
    """Takes one argument and gives one tensor, whatever the model does, so that every file looks the same."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        logits: Tensor = getattr(output, "logits", output)
        return logits


def dense_onnx(model: nn.Module, example: Inputs, path: Path) -> Path:
    """A float32 ONNX file; the batch is dynamic, and so is the length of tokens.

    Args:
        model: gives logits, or an output that has ``logits``.
        example: its arguments, without labels: by name, or one tensor (the file calls it ``input``). Sizes that
            are to be dynamic must not be 1 here.
        path: of the file.
    """
    peer("onnxscript", EXTRAS)
    inputs = dict(example) if isinstance(example, Mapping) else example
    with evaluating(model):
        program = torch.onnx.export(
            Logits(model).eval(),
            # By keyword: the exporter would take a dictionary at the end of `args` for keyword arguments.
            kwargs={"inputs": inputs},
            dynamic_shapes={"inputs": _dynamic(inputs)},
            input_names=list(inputs) if isinstance(inputs, dict) else ["input"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    program.save(path, external_data=False)  # type: ignore[union-attr]
    return path


def openvino_fp32(model: nn.Module, example: Inputs, path: Path, *, route: Route = "torch") -> Path:
    """A float32 OpenVINO IR (``.xml``, with its weights beside it).

    Args:
        model: as for `dense_onnx`.
        example: as for `dense_onnx`.
        path: of the IR.
        route: converted from torch directly, or from an ONNX file of it.
    """
    return _save_openvino(_openvino(model, example, route), path)


def nncf_int8(
    model: nn.Module, loader: Loader, example: Inputs, path: Path, *, transformer: bool, route: Route = "torch"
) -> Path:
    """NNCF's post-training int8 as an OpenVINO IR.

    Args:
        model: as for `dense_onnx`.
        loader: training examples, in batches of one (NNCF counts batches, and padding would enter the ranges).
        example: as for `dense_onnx`.
        path: of the IR.
        transformer: NNCF's mode for Transformers; otherwise its mixed preset (activations asymmetric).
        route: directly from torch, attention stays one operation, whose products NNCF leaves in float32: 38
            quantizers of activations in MiniLM, where by way of ONNX there are 50, and the faster file.
    """
    nncf = peer("nncf", EXTRAS)
    preset, kind = nncf.QuantizationPreset.MIXED, nncf.ModelType.TRANSFORMER if transformer else None
    calibration = nncf.Dataset(loader, lambda batch: arrays(split(batch)[0]))
    dense = _openvino(model, example, route)
    quantized = nncf.quantize(dense, calibration, preset=preset, model_type=kind, subset_size=CALIBRATION)
    return _save_openvino(quantized, path)


def accuracy_of_file(
    path: Path, runtime: Runtime, loader: Loader, *, threads: int = 2, precision: Precision = "f32"
) -> float:
    """Share of examples, from 0 to 1, whose class a file finds.

    Args:
        path: an ONNX file or an OpenVINO IR of a classifier.
        runtime: what runs it.
        loader: batches with labels, see `split`.
        threads: of the runtime.
        precision: of OpenVINO, see `benchmarks.latency.Runner`.
    """
    peer(runtime, EXTRAS)
    session = load(runtime, path, threads=threads, precision=precision)
    correct = total = 0
    for inputs, labels in map(split, loader):
        correct += int((session(arrays(inputs)).argmax(axis=-1) == labels.numpy()).sum())
        total += len(labels)
    return correct / total


def bytes_of_file(path: Path) -> int:
    """Bytes on disk; an OpenVINO IR is two files."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" else 0)


def modelopt_int8_(network: nn.Module, forward_loop: Callable[[nn.Module], Any]) -> None:
    """Model Optimizer's int8: weights per channel, the input of each linear or convolution per tensor, symmetric.

    Calibrates in eval mode, and leaves the network fake-quantizing, with the ranges fixed: train it as before.

    Args:
        network: changed in place; for a `TransformerModule` its ``model``.
        forward_loop: runs the network over calibration data.
    """
    mtq = peer("modelopt.torch.quantization", MODEL_OPTIMIZER)
    # Its default quantizes the inputs of layer norms too: five points of accuracy lost before any training.
    rules = mtq.INT8_DEFAULT_CFG["quant_cfg"]
    without_norms = [*rules, {"quantizer_name": "*", "parent_class": "nn.LayerNorm", "enable": False}]
    with evaluating(network), torch.no_grad():
        mtq.quantize(network, {**mtq.INT8_DEFAULT_CFG, "quant_cfg": without_norms}, forward_loop)


def torchao_qat_(network: nn.Module, *, weights: int, activations: bool, group: int | None = None) -> None:
    """Torchao's fake quantization of every linear layer; convolutions and embeddings stay as they are.

    Args:
        network: changed in place.
        weights: bits of a weight, symmetric; 2 to 8.
        activations: whether their inputs are quantized too: int8, asymmetric, dynamically for each token.
        group: weights that share a step; ``None`` for one step an output channel.
    """
    _torchao_(network, "prepare", weights=weights, activations=activations, group=group)


def torchao_convert_(network: nn.Module, *, weights: int, activations: bool, group: int | None = None) -> None:
    """After training: integer weights in place of fake quantization. Same arguments as in `torchao_qat_`."""
    _torchao_(network, "convert", weights=weights, activations=activations, group=group)


def _torchao_(network: nn.Module, step: str, *, weights: int, activations: bool, group: int | None) -> None:
    ao = peer("torchao.quantization", EXTRAS)
    qat = peer("torchao.quantization.qat", EXTRAS)
    dtype = getattr(torch, f"int{weights}")
    granularity = ao.PerAxis(0) if group is None else ao.PerGroup(group)
    if activations:
        # Not Int8DynamicActivationInt8WeightConfig: QATConfig refuses it.
        base = ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=granularity)
    else:
        base = ao.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)
    ao.quantize_(network, qat.QATConfig(base, step=step))


def split(batch: Any) -> tuple[Inputs, Tensor]:
    """Inputs and labels of a batch, which is a mapping with ``labels`` or a pair."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    inputs, labels = batch
    return inputs, labels


def arrays(inputs: Inputs) -> dict[str, Any]:
    """The inputs of a file by name, as numpy arrays."""
    named = inputs if isinstance(inputs, Mapping) else {"input": inputs}
    return {name: value.numpy() for name, value in named.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; then each module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():  # some may be new
            module.training = modes.get(module, modes[model])


def _dynamic(inputs: Inputs) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _dynamic(value) for name, value in inputs.items()}
    # Integers are tokens, of shape [batch, tokens]; images keep their size.
    dimensions = 1 if inputs.is_floating_point() else inputs.ndim
    return dict.fromkeys(range(dimensions), torch.export.Dim.DYNAMIC)


def _openvino(model: nn.Module, example: Inputs, route: Route) -> Any:
    openvino = peer("openvino", EXTRAS)
    if route == "onnx":
        with tempfile.TemporaryDirectory() as folder:
            return openvino.Core().read_model(dense_onnx(model, example, Path(folder) / "dense.onnx"))
    with evaluating(model):
        if isinstance(example, Mapping):
            return openvino.convert_model(model, example_input=dict(example))
        converted = openvino.convert_model(model, example_input=example, input=[-1, *example.shape[1:]])
    converted.input(0).get_tensor().set_names({"input"})
    return converted


def _save_openvino(model: Any, path: Path) -> Path:
    peer("openvino", EXTRAS).save_model(model, path, compress_to_fp16=False)
    return path
