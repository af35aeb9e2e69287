"""A budget search from a trained model to a file, judged by torch, by the real file, and by what it must not change."""

import copy
import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_compress import GradualPruning, KnowledgeDistillation, load_compressed, remove
from lightning_compress.core import CheckpointError, ConfigurationError, MissingExtraError, TargetError, select
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.export import compressed as compressed_files
from lightning_compress.recipes import budget as recipe
from lightning_compress.recipes.budget import search_budget
from lightning_compress.recipes.budget_carry_out import CarryOut, Tried, is_better
from lightning_compress.recipes.budget_goal import Goal, starting_plans
from lightning_compress.recipes.budget_models import few_examples
from lightning_compress.recipes.budget_plans import Budget, Choice, Prices
from lightning_compress.recipes.weight_changes import pruned, rounded
from tests.conformance.tiny import Tiny, data, loader, trainer


class Scored(Tiny):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))
        right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", right, batch_size=len(batch[0]))


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(64, generator=torch.Generator().manual_seed(0))

    def val_dataloader(self):
        return loader(64, shuffle=False)


class Fails(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


class Counts(pl.Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, *arguments):
        self.steps += 1


TUNING = {"max_epochs": 2, "accelerator": "cpu"}
SEARCH = {
    "budget": "2500 B",
    "monitor": "val_loss",
    "mode": "min",
    "sparsities": (0.0, 0.5, 0.8),
    "bits": (8, 4, 2),
    "include": "*",
    "trials": 10,
    "examples": 32,
}


@pytest.fixture(scope="module")
def trained():
    module = Scored()
    trainer(max_epochs=4).fit(module, datamodule=Data())
    return module


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "run"
    before = fingerprint(trained), [module.training for module in trained.modules()]
    result = search_budget(trained, Data(), out=out, fine_tune=TUNING, **SEARCH)
    after = fingerprint(trained), [module.training for module in trained.modules()]
    return SimpleNamespace(result=result, out=out, before=before, after=after)


def loss_of(module):
    features, labels = data(64).tensors
    with torch.no_grad():
        return float(nn.functional.cross_entropy(copy.deepcopy(module).eval()(features), labels))


def by_hand(module, plan):
    """The plan applied by the functions that the sensitivity analysis uses, in a model without quantizers."""
    other = copy.deepcopy(module)
    for target in select(other, include="*"):
        with torch.no_grad():
            target.parameter.copy_(pruned(target, plan[target.name].sparsity))
            target.parameter.copy_(rounded(target, plan[target.name].bits))
    return other


def test_the_model_stays_as_it_is(found):
    assert found.after == found.before


def test_untrained_figures_are_those_of_the_plan_applied_by_hand(found, trained):
    result = found.result
    assert result.dense["val_loss"] == pytest.approx(loss_of(trained), rel=1e-4)
    lost = loss_of(by_hand(trained, result.plan)) - loss_of(trained)
    assert result.untrained.lost == pytest.approx(lost, rel=1e-3, abs=1e-5)
    uniform = loss_of(by_hand(trained, result.uniform_plan)) - loss_of(trained)
    assert result.uniform.lost == pytest.approx(uniform, rel=1e-3, abs=1e-5)


def test_the_estimate_adds_up_what_single_layers_lose(found):
    table = json.loads((found.out / "sensitivity.json").read_text())
    lost = {}
    for point in table["points"]:
        lost.setdefault((point["kind"], point["value"]), {})[point["layer"]] = max(0, point["score"] - table["dense"])
    believed = {
        change: {layer: (one + sum(of.values()) / len(of)) / 2 for layer, one in of.items()}
        for change, of in lost.items()
    }
    added = 0.0
    for layer, choice in found.result.plan.items():
        zeros = [believed["sparsity", share][layer] for share in (0.5, 0.8) if share <= choice.sparsity]
        widths = [believed["bits", width][layer] for width in (8, 4, 2) if width >= choice.bits]
        added += max([0.0, *zeros]) + max([0.0, *widths])
    assert found.result.estimated_lost == pytest.approx(added)


def test_of_the_plan_and_the_uniform_one_the_really_better_wins(found):
    lost = {"uniform": found.result.uniform.lost, "plan": found.result.untrained.lost}
    assert lost["plan"] <= lost["uniform"] + 0.01  # the choice was made on half of the examples


@pytest.mark.parametrize(
    ("budget", "one", "other", "better"),
    [
        ("9 kB", (0, 0.2), (1, 0.1), False),
        ("9 kB", (1, 0.1), (0, 0.2), True),
        ("9 kB", (1, 0.1), (0, 0.1), False),  # the searched plan stays
        ("0.3 lost", (0, 0.2), (1, 0.1), False),  # both keep to it: the smaller file
        ("0.3 lost", (1, 0.1), (0, 0.2), True),
        ("0.15 lost", (0, 0.1), (1, 0.2), True),
        ("0.05 lost", (1, 0.2), (0, 0.1), False),
    ],
)
def test_which_of_two_plans_is_better(budget, one, other, better):
    choices = [Choice(0.0, 8), Choice(0.0, 4)]  # the larger file, the smaller
    sizes = {"layer": {choices[0]: 800, choices[1]: 400}}
    prices = Prices((0.0,), (8, 4), sizes, {"layer": dict.fromkeys(choices, 0.0)}, 0)
    plans = [({"layer": choices[place]}, lost) for place, lost in (one, other)]
    assert is_better(Goal(Budget.read(budget), prices), *plans) is better


def test_files_are_as_small_as_promised_and_hold_the_tuned_model(found):
    result = found.result
    path = found.out / "model.safetensors.zst"
    assert result.tuned.disk_bytes == path.stat().st_size
    assert result.tuned.packed_bytes <= result.estimated_bytes <= 2_500
    assert result.untrained.packed_bytes <= result.estimated_bytes
    assert result.keeps_budget
    read, plain = load_compressed(path), remove(result.module)
    assert all(torch.equal(read[name], value) for name, value in plain.state_dict().items())
    assert result.tuned.quality["val_loss"] == pytest.approx(loss_of(plain), rel=1e-4)


def test_the_fine_tune_keeps_to_the_plan(found):
    state = remove(found.result.module).state_dict()
    for layer, choice in found.result.plan.items():
        zeros = float((state[layer] == 0).float().mean())
        assert zeros >= choice.sparsity - 0.5 / state[layer].numel()
        assert max(len(row.unique()) for row in state[layer]) <= 2**choice.bits - 1


def test_written_results_say_what_the_object_says(found):
    written = json.loads((found.out / "result.json").read_text())
    result = found.result
    assert written["tuned"] == vars(result.tuned)
    assert {layer: (one["sparsity"], one["bits"]) for layer, one in written["plan"].items()} == result.plan
    words = result.summary()
    assert f"{result.tuned.disk_bytes:,} bytes on disk" in words
    assert f"{abs(result.sampled_lost - result.estimated_lost):.4g} " in words
    assert words.endswith("Budget of 2500 B: kept.")
    assert result.report is not None
    assert list(found.out.glob("fine_tune-*/report.html"))


def test_called_again_it_only_reads(found, trained, monkeypatch):
    monkeypatch.setattr(recipe.Judge, "__call__", counted(recipe.Judge.__call__, calls := []))
    counts = Counts()
    again = search_budget(trained, Data(), out=found.out, fine_tune=TUNING | {"callbacks": counts}, **SEARCH)
    assert counts.steps == 0
    assert len(calls) <= 8  # dense, plan, uniform plan and tuned: no layer alone
    assert again.plan == found.result.plan
    for now, before in ((again.untrained, found.result.untrained), (again.tuned, found.result.tuned)):
        assert (now.quality, now.packed_bytes) == (before.quality, before.packed_bytes)
        assert abs(now.disk_bytes - before.disk_bytes) < 16  # safetensors writes its metadata in any order
    assert again.report is not None


def counted(function, calls):
    def count(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return count


def test_a_fine_tune_that_was_killed_goes_on_and_ends_the_same(found, trained, tmp_path):
    for name in ("search.json", "sensitivity.json", "study.journal"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(found.out / name, tmp_path / "run" / name)
    counts = Counts()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search_budget(
            trained, Data(), out=tmp_path / "run", fine_tune=TUNING | {"callbacks": [counts, Fails()]}, **SEARCH
        )
    assert counts.steps == 16
    result = search_budget(trained, Data(), out=tmp_path / "run", fine_tune=TUNING | {"callbacks": counts}, **SEARCH)
    assert counts.steps == 32
    zeros = {name: int((value == 0).sum()) for name, value in remove(result.module).state_dict().items()}
    assert zeros.keys() == dict(trained.named_parameters()).keys()
    assert result.tuned.packed_bytes <= result.estimated_bytes
    assert result.plan == found.result.plan


class Shuffled(Data):
    def train_dataloader(self):
        return loader(64)  # drawn from the global generator, as dropout is


def test_a_fine_tune_that_was_cut_off_ends_bitwise_equal(trained, tmp_path):
    settings = SEARCH | {"trials": 0}
    tuning = TUNING | {"max_epochs": 3}
    torch.manual_seed(5)
    whole = search_budget(trained, Shuffled(), out=tmp_path / "whole", fine_tune=tuning, **settings)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search_budget(
            trained, Shuffled(), out=tmp_path / "parts", fine_tune=tuning | {"callbacks": Fails()}, **settings
        )
    torch.manual_seed(6)
    parts = search_budget(trained, Shuffled(), out=tmp_path / "parts", fine_tune=tuning, **settings)
    ends = remove(whole.module).state_dict(), remove(parts.module).state_dict()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0.0, atol=0.0)
    assert parts.tuned.quality == whole.tuned.quality


def plan_of(found, tmp_path):
    """A folder in which everything but the fit is done."""
    shutil.copytree(found.out, tmp_path / "run", ignore=shutil.ignore_patterns("fine_tune-*"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "extra",
    [
        {"callbacks": [KnowledgeDistillation("self"), ModelCheckpoint()], "max_time": "00:01:00:00"},
        {"enable_checkpointing": False},
    ],
    ids=["distillation, another checkpoint and a time limit", "no checkpoint"],
)
def test_arguments_of_the_trainer_that_go_along(found, trained, tmp_path, extra):
    out = plan_of(found, tmp_path)
    tuning = TUNING | {"default_root_dir": str(tmp_path / "root")} | extra
    result = search_budget(trained, Data(), out=out, fine_tune=tuning, **SEARCH)
    assert result.keeps_budget
    assert result.tuned.packed_bytes <= result.estimated_bytes


class ByHand(Scored):
    """Optimizes manually, so that nobody knows beforehand how many steps there are."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def test_manual_optimization(tmp_path):
    result = search_budget(ByHand(), Data(), out=tmp_path / "run", fine_tune=TUNING, **SEARCH | {"trials": 0})
    assert result.tuned.packed_bytes <= result.estimated_bytes


@pytest.mark.parametrize("name", ["last.ckpt", "finished.ckpt"])
def test_a_damaged_checkpoint_is_named(found, trained, tmp_path, name):
    shutil.copytree(found.out, tmp_path / "run")
    (file,) = (tmp_path / "run").glob(f"fine_tune-*/{name}")
    file.write_bytes(file.read_bytes()[:1_000])
    with pytest.raises(CheckpointError, match=rf"{name} is damaged; delete it"):
        search_budget(trained, Data(), out=tmp_path / "run", fine_tune=TUNING, **SEARCH)
    file.unlink()
    again = search_budget(trained, Data(), out=tmp_path / "run", fine_tune=TUNING, **SEARCH)
    assert again.tuned.quality["val_loss"] == pytest.approx(found.result.tuned.quality["val_loss"])


class Carried(CarryOut):
    """Really loses five times what is expected, and as much as ``floor`` at least."""

    floor = 0.0

    def _tried(self, plan):
        return Tried(plan, None, max(self.floor, 5.0 * self.judge.lost_by(plan)))


def steep():
    choices = [Choice(0.0, width) for width in (8, 6, 4, 3, 2)]
    losses = dict(zip(choices, (0.0001, 0.001, 0.01, 0.03, 0.1), strict=True))
    sizes = {choice: 1_000 * choice.bits for choice in choices}
    layers = [f"layer {number}" for number in range(6)]
    return Prices((0.0,), (8, 6, 4, 3, 2), dict.fromkeys(layers, sizes), dict.fromkeys(layers, losses), 0)


def test_a_plan_that_really_loses_too_much_gives_way_to_a_milder_one():
    prices = steep()
    goal = Goal(Budget.read("10 points"), prices)
    searched = goal.best(starting_plans(goal))
    carried = Carried(None, None, None, prices, {}, {}, None)
    first = carried._tried(searched)
    assert first.lost > 0.1
    found = carried._within(goal, first)
    assert found.lost <= 0.1
    assert goal.prices.bytes_of(found.plan) < goal.prices.bytes_of(dict.fromkeys(searched, Choice(0.0, 8)))
    assert carried._within(goal, found) is found
    carried = Carried(None, None, None, prices, {}, {}, None)
    Carried.floor = 0.2
    try:
        assert carried._within(goal, carried._tried(searched)).lost >= 0.2  # the end is reached all the same
    finally:
        Carried.floor = 0.0
    assert carried._within(Goal(Budget.read("9 kB"), prices), first) is first


def test_words_say_where_only_training_broke_the_budget(found):
    result = found.result
    broken = dataclasses.replace(
        result, budget=Budget.read("0.5 lost"), tuned=dataclasses.replace(result.tuned, lost=9.0)
    )
    kept = dataclasses.replace(broken, untrained=dataclasses.replace(result.untrained, lost=0.1))
    assert kept.summary().endswith("not kept, but plan.safetensors.zst, untrained, keeps it.")
    neither = dataclasses.replace(broken, untrained=dataclasses.replace(result.untrained, lost=8.0))
    assert neither.summary().endswith("not kept.")


def test_the_smallest_file_within_a_loss_and_nothing_trained(trained, tmp_path):
    settings = SEARCH | {"budget": "20 points", "monitor": "val_acc", "mode": "max", "bits": ()}
    settings |= {"sparsities": [0.5, 0.0]}
    result = search_budget(trained, Data(), out=tmp_path / "run", **settings)
    assert {choice.bits for choice in result.plan.values()} == {32}
    assert any(choice.sparsity for choice in result.plan.values())
    assert result.estimated_lost <= 0.2
    assert result.tuned is None
    assert result.report is None
    assert result.final is result.untrained
    assert result.keeps_budget == (result.dense["val_acc"] - result.untrained.quality["val_acc"] <= 0.2)
    assert (tmp_path / "run" / "plan.json").exists()
    assert not (tmp_path / "run" / "result.json").exists()


def test_few_examples_are_spread_over_the_whole_set():
    few = few_examples(Data(), 20)
    rows = torch.cat([batch[0] for batch in few.val_dataloader()])
    everything = data(64).tensors[0]
    places = [int((everything == row).all(1).nonzero()) for row in rows]
    assert len(places) == 20
    assert places[0] < 16
    assert places[-1] >= 48
    assert len(torch.cat([batch[0] for batch in few_examples(Data(), 1_000).val_dataloader()])) == 64


class NoNumber(Scored):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor(torch.nan), batch_size=len(batch[0]))


class Untrainable(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1]))


class Unjudged(Untrainable):
    validation_step = pl.LightningModule.validation_step


class OnlyTraining(pl.LightningDataModule):
    train_dataloader = Data.train_dataloader


class OnlyValidation(pl.LightningDataModule):
    val_dataloader = Data.val_dataloader


class Several(Data):
    def val_dataloader(self):
        return [loader(), loader()]


class Empty(Data):
    def val_dataloader(self):
        return DataLoader([])


BAD = {
    "a plain module": ({"module": nn.Linear(2, 2)}, "module of type Linear"),
    "a loader as data": ({"data": loader()}, "data of type DataLoader.*LightningDataModule"),
    "no number": ({"module": NoNumber()}, "monitor='val_loss' of the dense model is nan"),
    "no validation step": ({"module": Unjudged()}, "Unjudged has no validation_step"),
    "no training step": ({"module": Untrainable(), "fine_tune": TUNING}, "Untrainable has no training_step"),
    "no validation loader": ({"data": OnlyTraining()}, "OnlyTraining has no val_dataloader"),
    "no training loader": ({"data": OnlyValidation(), "fine_tune": TUNING}, "OnlyValidation has no train_dataloader"),
    "no such argument": ({"fine_tune": {"max_epoch": 1}}, "the Trainer refuses it.*'max_epoch'"),
    "a null in the folder": ({"out": "a\0b"}, "out='a.*cannot be written to"),
    "pruning twice": ({"fine_tune": {"callbacks": GradualPruning(0.5)}}, "GradualPruning does what the plan decides"),
    "no step": ({"fine_tune": TUNING | {"max_epochs": 0}}, "the fit has 0 optimizer steps, and this plan needs"),
    "no end": ({"fine_tune": TUNING | {"max_epochs": -1}}, "the fit has no end"),
    "several loaders": ({"data": Several()}, "val_dataloader.*gave a list"),
    "no examples": ({"data": Empty()}, "gave no batch"),
    "no such metric": ({"monitor": "val_f1"}, "monitor='val_f1' is not logged.*'val_loss', 'val_acc'"),
    "no metric": ({"monitor": 3}, "monitor=3, mode='min'"),
    "no such mode": ({"mode": "best"}, "mode='best'"),
    "no budget": ({"budget": "tiny"}, "budget='tiny'"),
    "an impossible budget": (
        {"budget": "900 B"},
        "budget='900 B' is out of reach: the nearest plan, 0.8 zeros at 2 bits",
    ),
    "all zeros": ({"sparsities": [1.0]}, "1.0 is no share of zeros"),
    "a word": ({"bits": "84"}, "bits='84' is no list"),
    "one bit": ({"bits": [8, 1]}, "1 is none of 2 to 8"),
    "no choice": ({"bits": (), "sparsities": ()}, "nothing to choose"),
    "no example": ({"examples": 0}, "examples=0: write a whole number from 1"),
    "half a trial": ({"trials": 0.5}, "trials=0.5"),
    "a negative seed": ({"seed": -1}, "seed=-1"),
    "epochs alone": ({"fine_tune": 3}, "fine_tune=3: write the Trainer's arguments"),
    "a vector": ({"include": ["head.bias", "head.weight"]}, "names head.bias, a vector"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(trained, tmp_path, case):
    changes, message = BAD[case]
    arguments = {"module": trained, "data": Data(), "out": tmp_path / "run"} | SEARCH | changes
    with pytest.raises(ConfigurationError, match=message):
        search_budget(arguments.pop("module"), arguments.pop("data"), **arguments)


def test_a_pattern_without_a_match(trained, tmp_path):
    with pytest.raises(TargetError, match=r"include='nothing\.\*' matches no parameter"):
        search_budget(trained, Data(), out=tmp_path, **SEARCH | {"include": "nothing.*"})


def test_a_file_as_folder(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"out=.*cannot be written to"):
        search_budget(trained, Data(), out=tmp_path / "file", **SEARCH)


def test_a_foreign_folder_stays_as_it_is(trained, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"has 'thesis.tex' in it and is of no budget search"):
        search_budget(trained, Data(), out=tmp_path, **SEARCH)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class Other(Data):
    def val_dataloader(self):
        features, labels = data(64).tensors
        return DataLoader(torch.utils.data.TensorDataset(features, 1 - labels), batch_size=4)


def test_other_validation_data_is_noticed(found, trained):
    with pytest.raises(CheckpointError, match=r"was begun with a dense model of val_loss .*the data has changed"):
        search_budget(trained, Other(), out=found.out, **SEARCH)


def test_a_folder_of_another_search(found, trained):
    for changes in ({"monitor": "val_acc", "mode": "max"}, {"examples": 16}):
        with pytest.raises(CheckpointError, match=r"was begun with .*'examples': 32.*and now it is"):
            search_budget(trained, Data(), out=found.out, **SEARCH | changes)
    with pytest.raises(CheckpointError, match=r"other settings \(changes"):
        search_budget(trained, Data(), out=found.out, **SEARCH | {"bits": (8, 4)})
    with pytest.raises(CheckpointError, match="another model"):
        search_budget(Scored(), Data(), out=found.out, **SEARCH)


@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_a_damaged_folder(trained, tmp_path, content):
    (tmp_path / "search.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"search.json is damaged"):
        search_budget(trained, Data(), out=tmp_path, **SEARCH)


def test_without_zstandard_nothing_is_begun(trained, tmp_path, monkeypatch):
    def missing():
        raise MissingExtraError("compressed files need the package zstandard")

    monkeypatch.setattr(compressed_files, "_zstandard", missing)
    with pytest.raises(MissingExtraError, match="zstandard"):
        search_budget(trained, Data(), out=tmp_path / "run", **SEARCH)
    assert not (tmp_path / "run").exists()
