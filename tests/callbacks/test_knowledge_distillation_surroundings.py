"""Distillation in training steps that are not the plainest."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_compress import ConfigurationError, DistillationModule, KnowledgeDistillation
from lightning_compress.distillation import Hint, LogitMSE, SequenceKD, SoftTargets
from tests.callbacks.distilling import WAYS, teacher
from tests.conformance.tiny import Tiny, fit, loader


def weights_of(module):
    return copy.deepcopy(module.state_dict())


@pytest.mark.parametrize("where", ["checkpoint", "setup", "on_fit_start"])
def test_a_copy_begins_with_the_weights_that_training_begins_with(where, tmp_path):
    dense = Tiny()
    run = fit(dense, max_epochs=1)
    run.save_checkpoint(tmp_path / "dense.ckpt")
    trained = weights_of(dense)

    class Late(Tiny):
        def setup(self, stage):
            if where == "setup":
                self.load_state_dict(trained)

    class Load(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            if where == "on_fit_start":
                pl_module.load_state_dict(trained)

    callback = KnowledgeDistillation("self")
    ckpt_path = tmp_path / "dense.ckpt" if where == "checkpoint" else None
    fit(Late(), Load(), callback, ckpt_path=ckpt_path)
    assert all(torch.equal(value, trained[name]) for name, value in callback.copies["self"].state_dict().items())


def test_calls_without_gradients_do_not_count():
    class Measured(Tiny):
        def loss(self, batch):
            with torch.no_grad():
                self(batch[0] * 5)
            return super().loss(batch)

    def terms(module):
        found = []

        class Look(pl.Callback):
            def on_train_batch_end(self, run, pl_module, outputs, batch, batch_idx):
                found.append(float(run.logged_metrics["distillation/logit_mse"]))

        module.body[2] = nn.Identity()
        fit(module, KnowledgeDistillation(teacher(), [LogitMSE()]), Look(), batches=loader(shuffle=False))
        return found

    assert terms(Measured()) == pytest.approx(terms(Tiny()))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 5)

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)


class Language(pl.LightningModule):
    def __init__(self, call):
        super().__init__()
        self.call, self.net = call, Tokens()
        with torch.no_grad():
            self.net.table.weight.copy_(torch.arange(50.0).view(10, 5).cos())

    def training_step(self, batch, batch_idx):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        output = self.net(ids, mask) if self.call == "by position" else self.net(ids, attention_mask=mask)
        return output.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_mask_given_by_position_counts():
    rows = [{"input_ids": torch.tensor([1, 2, 0, 0]), "attention_mask": torch.tensor([1, 1, 0, 0])} for _ in range(2)]
    found = []
    for call in ("by position", "by name"):
        torch.manual_seed(0)
        knows = Tokens()
        run = fit(Language(call), KnowledgeDistillation(knows, [SequenceKD()]), batches=DataLoader(rows, 2))
        found.append(float(run.logged_metrics["distillation/sequence_kd"]))
    assert found[0] == pytest.approx(found[1])


class Adversaries(pl.LightningModule):
    """A generator and a discriminator; the generator's step comes first."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.g, self.d = nn.Linear(8, 8), nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        labels = torch.ones(len(batch[0]), dtype=torch.long)
        first.zero_grad()
        self.manual_backward(F.cross_entropy(self.d(self.g(batch[0])), labels))
        first.step()
        second.zero_grad()
        with torch.no_grad():
            made = self.g(batch[0])
        self.manual_backward(F.cross_entropy(self.d(made), 1 - labels))
        second.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.g, self.d)]


@pytest.mark.parametrize(("network", "backward"), [("g", 0), ("d", 1)])
def test_adversaries_each_with_the_calls_of_its_own_backward(network, backward):
    module = Adversaries()
    width = 8 if network == "g" else 2
    run = fit(module, KnowledgeDistillation(nn.Linear(8, width), [LogitMSE()], network=network, backward=backward))
    assert run.logged_metrics["distillation/logit_mse"] > 0


def test_loss_backward_in_place_of_manual_backward():
    class Raw(Tiny):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.loss(batch).backward()
            self.optimizers().step()

    with pytest.raises(ConfigurationError, match=r"10 training steps never called self\.manual_backward\(loss\)"):
        fit(Raw(), KnowledgeDistillation(teacher()))


def test_a_short_fit_that_never_called_the_network():
    class Functional(Tiny):
        def loss(self, batch):
            return self.head.weight.square().sum()

    with pytest.warns(UserWarning, match="no network was ever called in training_step: nothing was distilled"):
        fit(Functional(), KnowledgeDistillation(teacher()), max_steps=3)


@pytest.mark.parametrize(
    ("one", "losses", "message"),
    [
        (lambda: nn.Linear(8, 1), [SoftTargets()], "SoftTargets of one logit are always 0"),
        (lambda: nn.Linear(8, 2).requires_grad_(False), None, "hold NaN or infinity"),
        (lambda: nn.Linear(9, 2), [SoftTargets()], "the teacher Linear cannot be called as the student is"),
    ],
)
def test_teachers_that_teach_nothing(one, losses, message):
    knows, module = one(), Tiny()
    if losses is None:
        nn.init.constant_(knows.weight, float("nan"))
    if "one logit" in message:
        module.head = nn.Linear(16, 1)
        module.loss = lambda batch: module(batch[0]).square().mean()
    with pytest.raises(ConfigurationError, match=message):
        fit(module, KnowledgeDistillation(knows, losses or [SoftTargets()]))


def test_a_start_that_fails_leaves_nothing_behind():
    module, knows = Tiny(), teacher()
    for network in ("", None):
        callback = KnowledgeDistillation(knows, [Hint([("body.3", "0"), ("body.3", "99")])], network=network)
        with pytest.raises(ConfigurationError, match="'99' names no module"):
            fit(module, callback)
    assert not any(part._forward_hooks or part._forward_pre_hooks for one in (module, knows) for part in one.modules())
    assert knows[1].inplace


@pytest.mark.parametrize(
    ("returned", "message"), [({"other": 1}, "returned dict"), (3.0, "returned float: expected a tensor")]
)
def test_what_a_training_step_must_not_return(returned, message):
    class Odd(Tiny):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            return returned

    with pytest.raises(ConfigurationError, match=message):
        fit(Odd(), KnowledgeDistillation(teacher()))


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
def test_a_step_that_draws_its_own_batches():
    class Drawing(Tiny):
        def training_step(self, dataloader_iter):
            return self.loss(next(dataloader_iter)[0])

    with pytest.raises(ConfigurationError, match="draws its own batches"):
        fit(Drawing(), KnowledgeDistillation(teacher()))


def test_a_module_that_has_a_teacher_in_a_trainer_that_has_another():
    with pytest.raises(ConfigurationError, match="give all teachers to one"):
        fit(DistillationModule(Tiny(), teacher()), KnowledgeDistillation(teacher(4)))


def test_a_student_that_was_compiled():
    with pytest.raises(ConfigurationError, match=r"torch\.compile\(DistillationModule\(\.\.\.\)\)"):
        DistillationModule(torch.compile(Tiny(), backend="eager"), teacher())


def test_a_module_of_the_student_s_that_is_called_student():
    class Nested(Tiny):
        def __init__(self):
            super().__init__()
            self.student, self.distillation = nn.Linear(8, 2), 0.5

        def forward(self, features):
            return self.student(features) * self.distillation

    class Own(DistillationModule):
        pass

    module = Own(Nested(), teacher())
    fit(module)
    assert type(module.unwrapped) is Nested
    assert type(copy.deepcopy(module).unwrapped) is Nested


def test_samples_without_a_label_alone():
    rows = [(torch.randn(8), torch.tensor(-100)) for _ in range(4)]
    for way in ("peer", "early layers"):
        module = Tiny()
        fit(module, WAYS[way](), batches=DataLoader(rows, 2))
        assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_feature_without_a_gradient_is_named():
    module = Tiny()
    module.body[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"what 'body\.0' gives has no gradient"):
        fit(module, KnowledgeDistillation(teacher(), [SoftTargets(), Hint([("body.0", "0")])]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_moving_average_is_what_is_asked(precision):
    callback, seen = KnowledgeDistillation("ema", [LogitMSE()], ema_decay=0.5), []

    class Look(pl.Callback):
        def on_train_batch_end(self, run, pl_module, outputs, batch, batch_idx):
            asked = next(iter(callback._distiller._teachers)).model
            assert asked is callback.copies["ema"]
            seen.append(asked.head.weight.clone())

    fit(Tiny(), Look(), callback, precision=precision)
    assert not torch.equal(seen[0], seen[-1])
