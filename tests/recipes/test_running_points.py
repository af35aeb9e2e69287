"""Points beside and after each other: what they share, what stops them, and how a run goes on."""

import errno
import json
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_compress import CompressionError, ConfigurationError
from lightning_compress.recipes import Compress, Prune, Quantize, jobs, runnable, sweep, training_clock
from tests.distributed.once import start_in_a_fork
from tests.recipes.small import Classifier, Digits, try_recipe


def figures(result):
    return [replace(point, seconds=0.0, disk_bytes=None) for point in result.points]


class Drawing(Digits):
    """Its order of batches comes from a generator that it keeps, and a count that it keeps shortens each epoch."""

    def __init__(self):
        super().__init__()
        self.generator, self.epochs = torch.Generator().manual_seed(0), 0

    def train_dataloader(self):
        self.epochs += 1
        rows = torch.utils.data.Subset(self.train, range(64 * max(1, 12 - self.epochs)))
        return DataLoader(rows, batch_size=64, shuffle=True, generator=self.generator)


def test_what_data_draw_and_count_is_each_point_s_own(tmp_path):
    options = {"sizes": [8, 12], "allowance": 20, "compress": [Prune(sparsity=[0.3]), Quantize(bits=[4])]}
    data = Drawing()
    state = data.generator.get_state()
    alone = try_recipe(tmp_path / "alone", data=data, **options)
    assert (data.epochs, data.trainer) == (0, None)
    assert torch.equal(data.generator.get_state(), state)
    with ThreadPoolExecutor(4) as threads:  # which share torch's generator
        beside = try_recipe(tmp_path / "beside", data=Drawing(), executor=threads, **options)
    assert figures(beside) == figures(alone)
    for made in ("8/prune_30", "8/dense"):
        (tmp_path / "alone" / made / "checkpoint.ckpt").unlink()
    assert figures(try_recipe(tmp_path / "alone", data=Drawing(), **options)) == figures(alone)


class Together(Classifier):
    """Sees how many of its kind train at a time."""

    now = most = 0

    def on_train_start(self):
        Together.now += 1
        time.sleep(0.3)
        Together.most = max(Together.most, Together.now)

    def on_train_end(self):
        Together.now -= 1


def test_threads_take_turns(tmp_path):
    with ThreadPoolExecutor(2) as threads:
        points = try_recipe(tmp_path / "run", build=Together, executor=threads).points
    assert [point.failure for point in points] == [None, None]
    assert (Together.now, Together.most) == (0, 1)


def test_data_that_cannot_be_copied_are_shared_with_a_word(tmp_path):
    data = Digits()
    with (tmp_path / "file").open("w") as data.file, pytest.warns(UserWarning, match="Digits cannot be copied"):
        assert try_recipe(tmp_path / "run", sizes=[8], data=data).best.size == "8"


def test_compressions_of_a_dense_model_that_is_gone_are_made_again(tmp_path):
    options = {"sizes": [8], "compress": [Quantize(bits=[4])]}
    first = try_recipe(tmp_path / "run", **options)
    result = tmp_path / "run" / "8" / "quantize_4_bits" / "result.json"
    result.write_text(result.read_text().replace(f'"quality": {first.points[1].quality}', '"quality": 0.123'))
    assert try_recipe(tmp_path / "run", **options).points[1].quality == 0.123
    (tmp_path / "run" / "8" / "dense" / "training.json").unlink()
    assert figures(try_recipe(tmp_path / "run", **options)) == figures(first)


def test_a_damaged_checkpoint_is_told_with_the_way_out(tmp_path):
    out, options = tmp_path / "run", {"sizes": [8], "allowance": 20}
    try_recipe(out, **options)
    checkpoint = out / "8" / "dense" / "checkpoint.ckpt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:999])
    result = try_recipe(out, compress=[Quantize(bits=[4])], **options)
    assert f"CheckpointError: {checkpoint} is damaged; delete it" in result.points[1].failure
    checkpoint.unlink()
    result = try_recipe(out, compress=[Quantize(bits=[4])], **options)
    assert [point.failure for point in result.points] == [None, None]
    checkpoint.unlink()
    going_on = out / "8" / "dense" / "going_on.ckpt"
    going_on.write_bytes(whole[:999])
    with pytest.raises(CompressionError, match=r"going_on.ckpt is damaged; delete it, and it is made again\.$"):
        try_recipe(out, **options)


def test_a_build_that_changed_is_told(tmp_path):
    options = {"sizes": [8], "allowance": 20}
    try_recipe(tmp_path / "run", **options)
    grid = [Quantize(bits=[4])]
    result = try_recipe(tmp_path / "run", build=lambda width: Classifier(2 * width), compress=grid, **options)
    assert "size mismatch for net.0.weight" in result.points[1].failure
    assert "was build changed? Then name another folder" in result.points[1].failure


def killed():
    os._exit(9)


def interrupted():
    os.kill(os.getpid(), signal.SIGINT)


def stopped_run(out, stop):
    class Stopped(Classifier):
        def on_train_batch_start(self, batch, index):
            if self.trainer.global_step == 25:
                stop()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    training_clock.SAVE_EVERY = 0.0
    try_recipe(out, build=Stopped, sizes=[8], compress=[Quantize(bits=[4])])


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize(("stop", "code"), [(killed, 9), (interrupted, 1)], ids=["killed", "Ctrl-C"])
def test_a_training_that_was_stopped_goes_on_where_it_was(stop, code, tmp_path):
    out = tmp_path / "run"
    found, said = start_in_a_fork(stopped_run, out, stop)()
    assert found == code, said
    assert not (out / "report.html").exists()
    assert torch.load(out / "8" / "dense" / "going_on.ckpt", weights_only=True)["global_step"] == 25
    steps = []

    class Seen(Classifier):
        def on_train_batch_end(self, *_):
            steps.append(self.trainer.global_step)

    result = try_recipe(out, build=Seen, sizes=[8], compress=[Quantize(bits=[4])])
    assert steps[2:] == list(range(26, 41))  # the first two are a look at what it costs
    assert [moment.step for moment in result.trainings[0].curve] == list(range(1, 41))
    assert [point.failure for point in result.points] == [None, None]


class Dies(pl.Callback):
    def on_train_start(self, trainer, module):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_ends_its_points_and_a_later_call_goes_on(tmp_path):
    grid, out = [Compress("dies", Dies)], tmp_path / "run"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        result = try_recipe(out, sizes=[8], compress=grid, executor=executor)
    assert result.points[0].failure is None
    assert result.points[1].failure.startswith("BrokenProcessPool: ")
    again = try_recipe(out, sizes=[8], compress=[Compress("dies", pl.Callback)])
    assert [point.failure for point in again.points] == [None, None]


def test_a_user_s_early_stop_beside_ours(tmp_path):
    stop = EarlyStopping("val_acc", mode="max", patience=0)
    result = try_recipe(
        tmp_path / "run",
        sizes=[8],
        allowance=4000,
        compress=[Prune(sparsity=[0.3])],
        trainer_kwargs={"callbacks": stop},
    )
    assert [point.failure for point in result.points] == [None, None]
    assert result.trainings[0].steps < 4000
    assert "The training of '8' was stopped before the allowance" in Path(result.report).read_text().replace(
        "&#x27;", "'"
    )


class Late(pl.LightningModule):
    """Its layers are made in ``configure_model``, and its input has a name."""

    def __init__(self, width):
        super().__init__()
        self.width, self.inner = width, None

    def configure_model(self):
        if self.inner is None:
            self.inner = Classifier(self.width)

    def forward(self, *, images):
        return self.inner(images)

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self(images=batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_acc", (self(images=batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def test_layers_made_late_and_inputs_by_name(tmp_path, monkeypatch):
    def measured(candidate, inputs, **_):
        assert candidate(**inputs).shape == (1, 10)
        return SimpleNamespace(timings=[SimpleNamespace(ms=1.0)])

    monkeypatch.setattr(runnable, "measure_latency", measured)
    grid = [Prune(sparsity=[0.3]), Quantize(bits=[4])]
    result = try_recipe(tmp_path / "run", build=Late, sizes=[8], compress=grid, measure_latency="eager")
    assert [(point.failure, point.latency_ms) for point in result.points] == [(None, 1.0)] * 4
    assert result.trainings[0].parameters == sum(one.numel() for one in Classifier(8).parameters())
    assert (tmp_path / "run" / "best" / "model.onnx").exists()


class Named(Digits):
    """Batches by name, of which the model takes one."""

    def __init__(self):
        super().__init__(batch_size=64)

    def named(self, rows):
        images, labels = zip(*rows, strict=True)
        return {"target": torch.stack(labels), "images": torch.stack(images)}

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=64, collate_fn=self.named)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=200, collate_fn=self.named)


class ByName(Classifier):
    def training_step(self, batch, index):
        return super().training_step((batch["images"], batch["target"]), index)

    def validation_step(self, batch, index):
        super().validation_step((batch["images"], batch["target"]), index)


def test_only_what_forward_takes_is_exported(tmp_path):
    result = try_recipe(tmp_path / "run", build=ByName, data=Named(), sizes=[8])
    assert (tmp_path / "run" / "best" / "model.onnx").exists()
    assert result.best.examples == 597


class NoNumber(Classifier):
    def validation_step(self, batch, index):
        self.log("val_acc", float("nan"))


class Empty(Digits):
    def train_dataloader(self):
        return DataLoader([], 1)


class Breaks(Classifier):
    """Cannot be built once training is over."""

    count = 0

    def __init__(self, width):
        super().__init__(width)
        Breaks.count += 1
        if Breaks.count > 2:
            raise OSError("the hub does not answer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"build": NoNumber}, "val_acc is nan: the training diverged"),
        ({"data": Empty()}, "it made no optimizer step"),
    ],
)
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader`", "ignore:No positive class|.*zero")
def test_what_is_no_training(options, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        try_recipe(tmp_path / "run", sizes=[8], **options)
    assert "failure" in (tmp_path / "run" / "8" / "dense" / "result.json").read_text()


def test_a_model_that_cannot_be_exported_costs_no_page(tmp_path):
    result = try_recipe(tmp_path / "run", build=Breaks, sizes=[8])
    assert Path(result.report).exists()
    assert "not written: OSError: the hub does not answer" in (tmp_path / "run" / "best" / "about.json").read_text()


@dataclass
class Size:
    name: str
    width: int = 8


def build(size):
    return Classifier(size.width)


def test_names_that_no_folder_could_have(tmp_path):
    sizes = [Size("größe ✓"), Size("日本"), Size("中国"), Size("../x"), Size("w" * 300), Size("w" * 301), Size("..")]
    result = try_recipe(tmp_path / "run", build=build, sizes=sizes, allowance=2)
    assert [point.failure for point in result.points] == [None] * 7
    folders = {point.folder.partition("/")[0] for point in result.points}
    assert len(folders) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {*folders, "best"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"build": build, "sizes": [Size("best")]}, "'best' is the name of a file or folder of the run itself"),
        ({"build": build, "sizes": [Size("Report.HTML")]}, "rename it"),
        ({"build": build, "sizes": [object()]}, "give object an attribute name"),
        ({"trainer_kwargs": {"precison": "16"}}, r"trainer_kwargs=\{'precison': '16'\} make no Trainer.*precison"),
        ({"trainer_kwargs": {"accelerator": "tpuu"}}, "make no Trainer.*tpuu"),
        ({"trainer_kwargs": {"callbacks": ["a"]}}, "callbacks='a' is no Callback"),
        ({"trainer_kwargs": {"callbacks": ModelCheckpoint()}}, "leave ModelCheckpoint out"),
        ({"trainer_kwargs": {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"}}, "write strategy='ddp'"),
        (
            {"trainer_kwargs": {"accelerator": "cpu", "devices": 2}, "executor": ThreadPoolExecutor(1)},
            "a Trainer of 2 processes starts this program again",
        ),
    ],
)
def test_what_cannot_run(options, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        try_recipe(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


class Lazy(Classifier):
    def __init__(self, width):
        super().__init__(width)
        self.head = torch.nn.LazyLinear(10)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers(tmp_path):
    with pytest.raises(ConfigurationError, match=r"build\('8'\) returned a module with lazy layers"):
        try_recipe(tmp_path / "run", build=Lazy, sizes=[8])


def test_a_factory_that_makes_no_callback(tmp_path):
    result = try_recipe(tmp_path / "run", sizes=[8], compress=[Compress("nothing", lambda: None)])
    assert "the factory made a NoneType" in result.points[1].failure
    with pytest.raises(ConfigurationError, match=r"Compress\(values='abc'\)"):
        Compress("letters", pl.Callback, "abc")


class Plain:
    def __init__(self, width):
        self.name, self.width = "plain", width


def test_a_size_that_changed_behind_its_name(tmp_path):
    try_recipe(tmp_path / "run", build=build, sizes=[Plain(8)], allowance=2)
    with pytest.raises(ConfigurationError, match=r"size plain: width was 8, is 9"):
        try_recipe(tmp_path / "run", build=build, sizes=[Plain(9)], allowance=2)


def test_a_second_call_on_a_folder_is_refused_and_changes_nothing(tmp_path):
    class Twice(Classifier):
        def on_train_start(self):
            try:
                try_recipe(tmp_path / "run", sizes=[9])
            except ConfigurationError as error:
                told.append(str(error))

    told = []
    assert try_recipe(tmp_path / "run", build=Twice, sizes=[8]).points[0].failure is None
    assert len(told) == 2  # a look at what it costs, and the training
    assert all("is in use by another call" in each for each in told)
    assert list(json.loads((tmp_path / "run" / "run.json").read_text())["sizes"]) == ["8"]


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    def full(module, baked, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fuller(folder, record):
        if record.failure is not None:
            full(None, None, folder)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_weights", full)
        patch.setattr(jobs, "write_record", fuller)
        patch.setattr(sweep, "write_record", fuller)
        with pytest.raises(CompressionError, match="has no more room: No space left on device; make some and call"):
            try_recipe(tmp_path / "run", sizes=[8])
    assert try_recipe(tmp_path / "run", sizes=[8]).points[0].failure is None


def test_examples_are_counted_where_accuracy_is_a_share_of_them(tmp_path):
    result = try_recipe(tmp_path / "run", sizes=[8])
    assert result.best.examples == 597
    assert result.environment["torch"] == torch.__version__
    assert result.created.startswith("20")
    by_loss = try_recipe(tmp_path / "loss", sizes=[8], monitor="val_loss", mode="min")
    assert by_loss.best.examples is None
