import builtins
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from lightning_compress import CheckpointError, MissingExtraError, load_compressed, save_compressed

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def sparse(shape, zeros, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2.0
    values.view(-1)[: round(zeros * values.numel())] = 0.0
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5), (3, 4, 5, 6)], ids=str)
def test_every_tensor_comes_back_bit_for_bit(dtype, zeros, shape, tmp_path):
    tensor = sparse(shape, zeros, dtype)
    save_compressed({"weight": tensor}, tmp_path / "file")
    back = load_compressed(tmp_path / "file")["weight"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


@given(st.floats(0.0, 1.0), st.integers(1, 40), st.integers(1, 40))
def test_any_share_of_zeros_and_any_shape(tmp_path_factory, zeros, rows, columns):
    tensor = sparse((rows, columns), zeros)
    path = tmp_path_factory.mktemp("any") / "file"
    save_compressed({"weight": tensor}, path)
    assert torch.equal(load_compressed(path)["weight"], tensor)


def test_special_values_and_strides_survive(tmp_path):
    tensor = torch.tensor([[float("nan"), float("inf"), -0.0, 0.0], [1e-45, -1.0, 0.0, 0.0]])
    channels_last = sparse((2, 3, 4, 5), 0.5).to(memory_format=torch.channels_last)
    save_compressed({"special": tensor, "strided": channels_last, "view": tensor.T}, tmp_path / "file")
    back = load_compressed(tmp_path / "file")
    torch.testing.assert_close(back["special"], tensor, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back["view"], tensor.T, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(back["strided"], channels_last)


def test_the_size_returned_is_the_size_on_disk_and_close_to_the_information_in_the_weights(tmp_path):
    weight = sparse((500, 1000), 0.9)
    size = save_compressed({"weight": weight}, tmp_path / "file")
    assert size == (tmp_path / "file").stat().st_size
    mask_and_values = weight.numel() / 8 + 4 * int((weight != 0).sum())
    assert size < 1.01 * mask_and_values


def test_tied_weights_are_stored_once_and_load_into_the_model(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForMaskedLM(BertConfig(vocab_size=2_000, **shape))
    size = save_compressed(model, tmp_path / "file")
    assert size < 4 * sum(parameter.numel() for parameter in model.parameters())
    other = BertForMaskedLM(model.config)
    other.load_state_dict(load_compressed(tmp_path / "file"))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize(
    "damage", [lambda blob: blob[:-9], lambda blob: blob[:40], lambda blob: b"", lambda blob: b"no"]
)
def test_a_damaged_file_is_told_as_such(damage, tmp_path):
    path = tmp_path / "file"
    save_compressed(nn.Linear(8, 8), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="file is damaged, or was not written by save_compressed"):
        load_compressed(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    import safetensors.torch
    import zstandard

    blob = safetensors.torch.save({"weight": torch.ones(2)})
    (tmp_path / "file").write_bytes(zstandard.ZstdCompressor().compress(blob))
    with pytest.raises(CheckpointError, match="format"):
        load_compressed(tmp_path / "file")


def test_a_missing_file_keeps_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_compressed(tmp_path / "absent")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    save_compressed({"weight": torch.ones(3)}, path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_compressed({"weight": torch.zeros(3)}, path)
    assert torch.equal(load_compressed(path)["weight"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_without_zstandard_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"lightning-compress\[storage\]"):
        save_compressed(nn.Linear(2, 2), tmp_path / "file")
