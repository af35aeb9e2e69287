"""A checkpoint stays the user's: its keys, its class, and one key of ours beside them."""

import sys

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_compress import CheckpointError
from tests.conformance.interruption import RandomState, run_to_the_end, run_until
from tests.conformance.tiny import WEIGHTS, WINDOW, Plain, Tiny, fit, loader, trainer, weights

KEY = "lightning_compress"


def trained(callback, path, model=None, **settings):
    """A checkpoint that was written during the run's last step, by ModelCheckpoint."""
    writer = ModelCheckpoint(path, "last", every_n_train_steps=1, enable_version_counter=False, **settings)
    run = fit(model or Tiny(), callback, writer)
    return run, torch.load(path / "last.ckpt", weights_only=True)


def test_only_one_key_is_added(case, tmp_path):
    _, plain = trained(ModelCheckpoint(tmp_path / "unused"), tmp_path)
    callback = case.make(**WINDOW)
    _, checkpoint = trained(callback, tmp_path)
    assert checkpoint.keys() == plain.keys() | {KEY}
    assert list(checkpoint["state_dict"]) == list(plain["state_dict"]) == list(Plain().state_dict())
    assert [type(state) for state in checkpoint["optimizer_states"]] == [dict]
    assert callback.state_key not in checkpoint["callbacks"]
    assert list(checkpoint[KEY]) == [callback.state_key]


def test_loads_strictly_where_this_package_is_not_installed(case, tmp_path, monkeypatch):
    run, _ = trained(case.make(**WINDOW), tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == KEY]:
        monkeypatch.setitem(sys.modules, name, None)
    plain = Plain()
    plain.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"], strict=True)
    assert case.holds(plain)
    again = Tiny.load_from_checkpoint(tmp_path / "last.ckpt", strict=True)
    for found, expected in zip(weights(again), weights(run.lightning_module), strict=True):
        assert torch.equal(found, expected)


def test_weights_only_files_have_our_state(case, tmp_path):
    _, full = trained(case.make(**WINDOW), tmp_path)
    _, small = trained(case.make(**WINDOW), tmp_path, save_weights_only=True)
    assert "callbacks" not in small
    assert small[KEY].keys() == full[KEY].keys()


def test_saved_after_fit(case, tmp_path):
    callback = case.make(**WINDOW)
    run = fit(Tiny(), callback)
    run.save_checkpoint(tmp_path / "after.ckpt")
    checkpoint = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert list(checkpoint[KEY]) == [callback.state_key]
    assert list(checkpoint["state_dict"]) == list(Plain().state_dict())


def test_optimizer_keeps_its_groups(case, tmp_path):
    _, plain = trained(ModelCheckpoint(tmp_path / "unused"), tmp_path)
    _, checkpoint = trained(case.make(**WINDOW), tmp_path)
    found, expected = checkpoint["optimizer_states"][0], plain["optimizer_states"][0]
    assert found["param_groups"] == expected["param_groups"]
    assert {key: state.keys() for key, state in found["state"].items()} == {
        key: state.keys() for key, state in expected["state"].items()
    }


class Remembering(Tiny):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = self.global_step

    def on_load_checkpoint(self, checkpoint):
        self.found = checkpoint["mine"]


def test_hooks_of_the_user_still_run(case, tmp_path):
    path = run_until(4, tmp_path, Remembering(), case.make(**WINDOW))
    model = Remembering()
    run = run_to_the_end(model, case.make(**WINDOW), ckpt_path=path)
    assert model.found == 4
    run.save_checkpoint(tmp_path / "after.ckpt")
    assert torch.load(tmp_path / "after.ckpt", weights_only=True)["mine"] == 16


def test_a_hook_that_the_user_put_on_the_instance_comes_back(case):
    model, seen = Tiny(), []
    hook = model.on_save_checkpoint = seen.append
    run = fit(model, case.make(**WINDOW))
    assert case.outlives_fit or model.on_save_checkpoint == hook
    run._checkpoint_connector.dump_checkpoint()
    assert len(seen) == 1


def damaged(value, path=()):
    """Every way to lose one entry of a nested state, or to find nonsense in its place."""
    yield path, "nonsense"
    if isinstance(value, dict) and path[-1:] != ("settings",):  # changed settings warn, and hold
        for key in value:
            yield (*path, key, "lost"), {other: value[other] for other in value if other != key}
            yield from ((deeper, value | {key: worse}) for deeper, worse in damaged(value[key], (*path, key)))


def test_damaged_state_is_refused(case, tmp_path):
    path = run_until(6, tmp_path, Tiny(), case.make(**WINDOW))
    checkpoint = torch.load(path, weights_only=True)
    key, state = next(iter(checkpoint[KEY].items()))
    wrong = {"no mapping": "nonsense", "no entry": {key: None}}
    wrong |= {"/".join(map(str, place)): {key: damage} for place, damage in damaged(state)}
    outcomes = {}
    for place, states in wrong.items():
        torch.save(checkpoint | {KEY: states}, path)
        model = Tiny()
        try:
            run_to_the_end(model, case.make(**WINDOW), ckpt_path=path)
            outcomes[place] = "accepted"
        except CheckpointError:
            assert "on_save_checkpoint" not in model.__dict__
        except Exception as error:
            outcomes[place] = repr(error)
    assert not outcomes


def test_state_of_another_callback_warns_and_starts_anew(case, tmp_path):
    path = run_until(1, tmp_path, Tiny(), case.make(**WINDOW, include="head"))
    callback = case.make(**WINDOW, include=list(WEIGHTS))
    with pytest.warns(UserWarning, match="starts anew"):
        run = run_to_the_end(Tiny(), callback, ckpt_path=path)
    assert case.holds(run.lightning_module)


def test_evaluation_from_a_checkpoint(case, tmp_path):
    path = run_until(9, tmp_path, Tiny(), case.make(**WINDOW))
    for callbacks in ([case.make(**WINDOW)], []):
        model = Tiny()
        evaluation = trainer(*callbacks, RandomState())
        evaluation.test(model, loader(shuffle=False), ckpt_path=path, verbose=False)
        assert case.holds(model)
