"""A run that is killed, the one that was not, and whether they ended alike."""

import pytorch_lightning as pl
import torch

from tests.conformance.tiny import ResumableLoader, fit


class KilledError(Exception):
    pass


class Kill(pl.Callback):
    """Writes a checkpoint after an optimizer step and ends the run by an exception, in the middle of an epoch."""

    def __init__(self, after, path):
        self.after, self.path = after, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.after:
            trainer.save_checkpoint(self.path)
            raise KilledError


class RandomState(pl.Callback):
    """Lightning does not restore random state; without it no run with dropout could be repeated."""

    def state_dict(self):
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state):
        torch.set_rng_state(state["torch"])


def run_to_the_end(model, *callbacks, ckpt_path=None, **settings):
    """A whole run, or what is left of it."""
    torch.manual_seed(7)
    return fit(model, *callbacks, RandomState(), batches=ResumableLoader(), ckpt_path=ckpt_path, **settings)


def run_until(step, folder, model, *callbacks, ckpt_path=None, **settings):
    """A run that is killed after an optimizer step.

    Returns:
        The path of the checkpoint that it wrote last.
    """
    torch.manual_seed(7)
    path = folder / f"{step}.ckpt"
    extra = [RandomState(), Kill(step, path)]
    try:
        fit(model, *callbacks, *extra, batches=ResumableLoader(), ckpt_path=ckpt_path, **settings)
    except KilledError:
        return path
    raise AssertionError(f"the run ended before step {step}")


def everything(run):
    """Weights, optimizer state and counts: whatever may differ between two runs."""
    found = {f"weight {name}": tensor for name, tensor in run.lightning_module.state_dict().items()}
    for place, optimizer in enumerate(run.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            found.update({f"optimizer {place} {index} {name}": value for name, value in state.items()})
    return found | {"steps": torch.tensor(run.global_step), "random": torch.get_rng_state()}


def assert_bitwise_equal(found, expected):
    assert found.keys() == expected.keys()
    differing = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not differing
