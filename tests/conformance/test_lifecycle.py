"""One callback over several fits, models, copies and failures."""

import copy
import pickle

import pytest
import pytorch_lightning as pl
import torch

from tests.conformance.tiny import (
    UPDATES,
    WEIGHTS,
    WINDOW,
    Tiny,
    Validated,
    fit,
    loader,
    record_updates,
    trainer,
    weights,
    zeros,
)


def assert_clean(case, model):
    """Nothing of a callback is left on a module that could act, but for what goes on until it is removed."""
    patched = [name for name, value in model.__dict__.items() if callable(value) and not isinstance(value, type)]
    if case.outlives_fit and case.is_attached(model):
        assert patched in ([], ["on_save_checkpoint"])
        return
    hooked = [
        name
        for name, module in model.named_modules()
        if module._forward_pre_hooks or module._forward_hooks or module._backward_hooks
    ]
    assert not patched
    assert not hooked
    assert {type(module).__module__.partition(".")[0] for module in model.modules()} <= {"torch", "tests"}


class Watch(pl.Callback):
    """The model's zeros after each step."""

    def __init__(self, names=WEIGHTS):
        self.names, self.zeros = names, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.zeros.append(zeros(pl_module, self.names))


def test_fit_leaves_the_module_as_it_was(case):
    model = Tiny()
    fit(model, case.make(**WINDOW))
    assert_clean(case, model)
    assert list(model.state_dict()) == list(Tiny().state_dict())


def test_second_fit_revives_nothing(case):
    model, callback = Tiny(), case.make(**WINDOW)
    fit(model, callback)
    before = zeros(model)
    watch = Watch()
    fit(model, callback, watch)
    assert case.holds(model)
    assert min(watch.zeros) >= before * 0.97  # regrown weights may still be zero at the end of the first fit
    assert_clean(case, model)


def test_second_fit_of_the_same_trainer_goes_on(case):
    model, callback = Tiny(), case.make(**WINDOW)
    updates = record_updates(callback)
    watch = Watch()
    run = fit(model, callback, watch)
    before = watch.zeros[-1]
    run.fit_loop.max_epochs = 4
    with pytest.warns(UserWarning, match="though the run now has 32"):
        run.fit(model, loader())
    assert run.global_step == 32
    assert updates == case.updates(UPDATES)
    assert min(watch.zeros[16:]) >= before * 0.97
    assert case.holds(model)
    assert_clean(case, model)


def test_other_model_is_treated_as_by_a_fresh_callback(case):
    callback = case.make(**WINDOW)
    fit(Tiny(), callback)
    model, expected = Tiny(), Tiny()
    torch.manual_seed(3)
    fit(model, callback)
    torch.manual_seed(3)
    fit(expected, case.make(**WINDOW))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected.parameters(), strict=True))
    assert_clean(case, model)


class BrokenError(Exception):
    pass


class Breaking(Tiny):
    def __init__(self, hook, batch=3, error=BrokenError):
        super().__init__()
        self.hook, self.batch, self.error, self.calls = hook, batch, error, 0

    def _break(self, hook):
        self.calls += hook == self.hook
        if hook == self.hook and self.calls > self.batch:
            raise self.error

    def setup(self, stage):
        self._break("setup")

    def on_fit_start(self):
        self._break("fit start")

    def training_step(self, batch, batch_idx):
        self._break("training step")
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self._break("epoch end")


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
@pytest.mark.parametrize(("hook", "batch"), [("setup", 0), ("fit start", 0), ("training step", 3), ("epoch end", 0)])
def test_exception_in_training(case, hook, batch, error):
    model, callback = Breaking(hook, batch, error), case.make(**WINDOW)
    with pytest.raises((error, SystemExit)):
        fit(model, callback)
    assert_clean(case, model)
    updates, other = record_updates(callback), Tiny()
    fit(other, callback)
    assert updates == case.updates(UPDATES)
    assert case.holds(other)


def test_interrupted_model_goes_on_in_a_new_run(case):
    model, callback = Breaking("training step", 6), case.make(**WINDOW)
    with pytest.raises(BrokenError):
        fit(model, callback)
    model.hook = None
    fit(model, callback)
    assert case.holds(model)
    assert_clean(case, model)


class CopyAt(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.module = copy.deepcopy(pl_module)
            self.callbacks = copy.deepcopy([one for one in trainer.callbacks if one is not self])


def test_copies_made_during_a_fit_are_independent(case):
    expected = Tiny()
    torch.manual_seed(3)
    fit(expected, case.make(**WINDOW))
    model, copying = Tiny(), CopyAt(6)
    torch.manual_seed(3)
    fit(model, case.make(**WINDOW), copying)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected.parameters(), strict=True))
    kept = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(copying.module.parameters(), lr=0.1)
    copying.module.loss(next(iter(loader()))).backward()
    optimizer.step()
    fit(Tiny(), *copying.callbacks)
    copying.module.on_save_checkpoint({})
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_made_after_a_fit(case, duplicate):
    model, callback = Tiny(), case.make(**WINDOW)
    fit(model, callback)
    kept = copy.deepcopy(model.state_dict())
    model.trainer = None
    other_model, other_callback = duplicate(model), duplicate(callback)
    assert case.holds(other_model)
    fit(other_model, other_callback)
    assert case.holds(other_model)
    assert_clean(case, other_model)
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_callbacks_of_a_trainer_are_copied_after_a_fit(case):
    run = fit(Tiny(), case.make(**WINDOW))
    model = Tiny()
    fit(model, *copy.deepcopy(run.callbacks))
    assert case.holds(model)


def test_fresh_callback_is_copied_and_pickled(case):
    for duplicate in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        model = Tiny()
        fit(model, duplicate(case.make(**WINDOW)))
        assert case.holds(model)


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_evaluation_without_fit_changes_nothing(case, entry):
    model, fresh = Validated(), Validated()
    getattr(trainer(case.make(**WINDOW)), entry)(model, loader(shuffle=False), verbose=False)
    for found, expected in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert_clean(case, model)


def test_evaluation_after_fit(case):
    model = Validated()
    run = fit(model, case.make(**WINDOW))
    before = [weight.clone() for weight in weights(model)]
    run.validate(model, verbose=False)
    run.test(model, loader(shuffle=False), verbose=False)
    assert case.holds(model)
    assert all(torch.equal(found, expected) for found, expected in zip(weights(model), before, strict=True))
