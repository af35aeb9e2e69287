"""The ready-made YAML in callbacks/ drives any LightningCLI."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.report import read_report

FOLDER = Path(__file__).parents[2] / "callbacks"
FILES = sorted(FOLDER.glob("*.yaml"))


class Network(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(2, (64,))), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def command_line(*configs, run=True):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    command = [*(["fit"] if run else []), *(word for config in configs for word in ("--config", str(config)))]
    return LightningCLI(
        Network,
        trainer_defaults={**quiet, "max_epochs": 1},
        save_config_callback=None,
        seed_everything_default=0,
        args=command,
        run=run,
    )


def callback_of(cli):
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, AttachedCallback))


def is_sparse(layer):
    return int((layer.weight == 0).sum()) == round(0.9 * layer.weight.numel())


def is_quantized(layer):
    return layer.input_quantizer.has_range and not layer.input_quantizer.watching


@pytest.mark.parametrize(
    ("config", "holds"), [("gradual_pruning", is_sparse), ("quantization_aware_training", is_quantized)]
)
def test_every_file_runs_a_fit(config, holds):
    cli = command_line(FOLDER / f"{config}.yaml")
    assert holds(cli.model.net[0])


def test_there_is_a_file_for_each_callback_of_the_package():
    names = ("compression_report", "gradual_pruning", "knowledge_distillation", "quantization_aware_training")
    assert {file.stem for file in FILES} == set(names)


def test_the_file_of_the_report_adds_to_that_of_another_callback(tmp_path):
    config = tmp_path / "config.yaml"
    text = (FOLDER / "compression_report.yaml").read_text()
    config.write_text(text.replace("dirpath: null", f"dirpath: {tmp_path}").replace("runtimes: null", "runtimes: []"))
    cli = command_line(FOLDER / "gradual_pruning.yaml", config)
    assert is_sparse(cli.model.net[0])
    assert [one.name for one in read_report(tmp_path).applied] == ["GradualPruning"]


def test_the_file_of_distillation_runs_a_fit():
    logged = command_line(FOLDER / "knowledge_distillation.yaml").trainer.logged_metrics
    assert {"distillation/task", "distillation/soft_targets"} <= logged.keys()


def test_a_teacher_and_losses_from_a_file(tmp_path):
    linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 8, "out_features": 2}}
    hint = {"class_path": "lightning_compress.distillation.Hint", "init_args": {"pairs": [["0", ""]]}}
    soft = {"class_path": "lightning_compress.distillation.SoftTargets", "init_args": {"temperature": 4.0}}
    arguments = {"teacher": linear, "losses": [hint, soft], "task_weight": 0, "network": "net"}
    written = {"class_path": "lightning_compress.KnowledgeDistillation", "init_args": arguments}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [written]}}))
    logged = command_line(config).trainer.logged_metrics
    assert {"distillation/hint", "distillation/soft_targets"} == logged.keys()


def test_settings_of_quantization_reach_the_callback_as_written(tmp_path):
    arguments = {"weight_bits": "ternary", "activation_bits": None, "freeze_ranges": 1.0, "start": 1}
    arguments["overrides"] = {"net.0.*": {"weight_bits": 4}}
    config = tmp_path / "config.yaml"
    written = {"class_path": "lightning_compress.QuantizationAwareTraining", "init_args": arguments}
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [written]}}))
    callback = callback_of(command_line(config, run=False))
    for name, value in arguments.items():
        given = getattr(callback, name)
        assert (given, type(given)) == (value, type(value))


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": 1, "end": 1.0, "every": 2},
        {"sparsity": {"net.0.*": 0.5}, "end": 20},
        {"criterion": "movement", "scope": "layer", "include": ["net.0.weight"]},
        {"criterion": "lightning_compress.pruning.criteria.taylor", "exclude": "net.2.*", "include": "*"},
        {"initial_sparsity": "current", "pattern": "2:4"},
    ],
)
def test_arguments_reach_the_callback_as_written(arguments, tmp_path):
    config = tmp_path / "config.yaml"
    callback = {"class_path": "lightning_compress.GradualPruning", "init_args": arguments}
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    callback = callback_of(command_line(config, run=False))
    for name, value in arguments.items():
        given = getattr(callback, name)
        if name == "criterion" and "." in value:
            assert given.__name__ == "taylor"
        else:
            assert (given, type(given)) == (value, type(value))
