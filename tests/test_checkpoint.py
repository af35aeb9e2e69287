import dataclasses
from pathlib import Path

import pytest
import torch

from lightning_compress import CheckpointError, QuantizationAwareTraining, load_from_checkpoint
from tests.conformance.tiny import Tiny, data, fit


@dataclasses.dataclass
class Setting:
    width: int = 3


class WithObjects(Tiny):
    def __init__(self, where=None, setting=None):
        super().__init__()
        self.save_hyperparameters()


def saved(module, folder):
    path = folder / "model.ckpt"
    fit(module, QuantizationAwareTraining()).save_checkpoint(path)
    return path


@pytest.mark.parametrize("objects", [{"where": Path("data")}, {"setting": Setting()}], ids=["path", "dataclass"])
def test_hyperparameters_that_are_objects_load_where_the_file_is_trusted(objects, tmp_path):
    module = WithObjects(**objects)
    path = saved(module, tmp_path)
    with pytest.raises(CheckpointError, match=r"model.ckpt holds a .*(Path|Setting), .* write .*weights_only=False\)"):
        load_from_checkpoint(WithObjects, path)
    again = load_from_checkpoint(WithObjects, path, weights_only=False)
    assert {name: again.hparams[name] for name in objects} == objects
    vectors = data().tensors[0]
    with torch.no_grad():
        assert torch.equal(again.eval()(vectors), module.eval()(vectors))


@pytest.mark.parametrize("damage", [7, None, {"method": 5}, {"method": None}])
def test_a_state_that_is_no_mapping(damage, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": Tiny().state_dict(), "lightning_compress": {"X": damage}}, path)
    with pytest.raises(CheckpointError, match=r"'lightning_compress' is damaged, the state of X is (7|5|None) and no"):
        load_from_checkpoint(Tiny, path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(share, tmp_path):
    path = saved(Tiny(), tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"model\.ckpt is no checkpoint that torch can read"):
        load_from_checkpoint(Tiny, path)
    with pytest.raises(FileNotFoundError):
        load_from_checkpoint(Tiny, tmp_path / "none.ckpt")
