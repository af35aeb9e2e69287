import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import save_model

from lightning_compress import GradualPruning, QuantizationAwareTraining, export, save_compressed
from lightning_compress.cli import main
from tests.conformance.tiny import Tiny, fit
from tests.quantization.quantized import random


@dataclass(frozen=True)
class Run:
    """A small run, pruned 2:4 and quantized to 4 bits, and the files made from its model."""

    folder: Path
    module: Tiny

    def __getattr__(self, suffix):
        return str(self.folder / f"small.{suffix}")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    callbacks = [
        GradualPruning(pattern="2:4", start=1, end=4, every=1),
        QuantizationAwareTraining(4, overrides={"body.3": {"weight_bits": 3}}),
    ]
    module = Tiny()
    fit(module, *callbacks).save_checkpoint(folder / "small.ckpt", weights_only=False)
    module.eval()
    save_compressed(module, folder / "small.zst")
    save_model(module, str(folder / "small.safetensors"))
    export(module, folder / "small.onnx", random(4, 8), runtime_check=False)
    export(module, folder / "small.xml", random(4, 8), runtime_check=False, format="openvino")
    export(Tiny().eval(), folder / "dense.onnx", random(4, 8), runtime_check=False)
    return Run(folder, module)


@pytest.fixture
def command(capsys):
    """Runs the command line; gives its exit code, standard output and standard error."""

    def called(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return called


@pytest.fixture
def as_json(command):
    """Runs it with ``--json``; standard output must hold nothing else."""

    def called(*arguments, code=0):
        found, out, _ = command(*arguments, "--json")
        assert found == code
        return json.loads(out)

    return called
