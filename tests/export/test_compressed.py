import builtins
import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from lightning_compress import CheckpointError, MissingExtraError, load_compressed, save_compressed
from lightning_compress.quantization.removal import remove
from tests.quantization.quantized import IDS, WAYS, Recurrent, bert, cnn, mlp, quantize_, random

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


def quantized_mlp(**settings):
    model = mlp(inputs=256, hidden=128, outputs=64)
    quantize_(model, random(8, 256), **settings)
    return model


def raw(path):
    """The file's tensors, in bytes, before Zstandard."""
    import zstandard

    stored = safetensors.torch.load(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
    return {name: value.numel() * value.element_size() for name, value in stored.items()}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_quantized_model_comes_back_bit_for_bit_as_it_would_be_removed(way, tmp_path):
    for build, batch, options in (
        (mlp, random(8, 64), {}),
        (cnn, random(8, 4, 9, 9), {}),
        (Recurrent, IDS, {"include": ["*"]}),
        (bert, IDS, {"include": ["*.layer.*", "*embeddings*"]}),
    ):
        model = build()
        quantize_(model, batch, steps=3, **options, **WAYS[way])
        save_compressed(model, tmp_path / "file")
        loaded, expected = load_compressed(tmp_path / "file"), remove(model).state_dict()
        assert list(loaded) == list(expected) == list(build().state_dict())
        for name, value in expected.items():
            assert torch.equal(loaded[name], value), name
            assert loaded[name].dtype == value.dtype
        build().load_state_dict(loaded, strict=True)


def test_what_is_stored_once_is_tied_again(tmp_path):
    model = Recurrent()
    quantize_(model, IDS, include=["*"], weight_bits=4)
    save_compressed(model, tmp_path / "file")
    loaded = load_compressed(tmp_path / "file")
    assert loaded["head.weight"] is loaded["words.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_quantized_model_in_half_precision(dtype, tmp_path):
    model = quantized_mlp(weight_bits=4).to(dtype)
    save_compressed(model, tmp_path / "file")
    loaded = load_compressed(tmp_path / "file")
    assert all(torch.equal(loaded[name], value) for name, value in remove(model).state_dict().items())
    assert loaded["0.weight"].dtype == dtype


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_weight_takes_as_many_bits_as_it_was_quantized_to(bits, tmp_path):
    model = quantized_mlp(weight_bits=bits, method="lsq")  # its grid has all 2^bits places
    save_compressed(model, tmp_path / "file")
    sizes, weight = raw(tmp_path / "file"), model[0].weight
    assert sum(size for name, size in sizes.items() if name.startswith("0.weight.") and "scale" not in name) <= (
        weight.numel() * bits / 8
    )
    assert sizes["0.weight.scale"] == 4 * len(weight)
    assert sizes["0.bias.values"] == 4 * len(weight)


@pytest.mark.parametrize(
    ("way", "bits"), [("4 bits", 4), ("ternary", 2), ("ttq", 2), ("2 bits", 2), ("binary", 1), ("binaryconnect", 1)]
)
def test_real_bytes_before_and_after_zstandard(way, bits, tmp_path):
    model = quantized_mlp(**WAYS[way])
    dense = save_compressed(mlp(inputs=256, hidden=128, outputs=64), tmp_path / "dense")
    quantized = save_compressed(model, tmp_path / "file")
    sizes, weights = raw(tmp_path / "file"), model[0].weight.numel() + model[2].weight.numel()
    integers = sum(size for name, size in sizes.items() if name.endswith(("weight.values", "weight.mask")))
    integers -= sizes["4.weight.values"]  # the head, in float32
    assert integers <= weights * bits / 8
    assert quantized < 1.1 * sum(sizes.values())
    assert quantized < dense


def test_four_bits_are_an_eighth_of_float32(tmp_path):
    plain, model = nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 1024, bias=False)
    quantize_(model, random(8, 1024), include=["weight"], weight_bits=4)
    save_compressed(plain, tmp_path / "dense")
    save_compressed(model, tmp_path / "file")
    before, after = sum(raw(tmp_path / "dense").values()), sum(raw(tmp_path / "file").values())
    assert 8 * after == pytest.approx(before, rel=0.01)  # and a scale for each of 1024 rows


@pytest.mark.parametrize("way", ["8 bits", "4 bits", "binary", "ternary"])
def test_pruned_and_quantized_weights_are_a_mask_and_the_integers_that_are_left(way, tmp_path):
    model = mlp(inputs=256, hidden=128)
    with torch.no_grad():
        model[0].weight *= random(128, 256) > 1.28  # 90 % of zeros
    quantize_(model, random(8, 256), **WAYS[way])
    save_compressed(model, tmp_path / "file")
    loaded, sizes = load_compressed(tmp_path / "file")["0.weight"], raw(tmp_path / "file")
    assert torch.equal(loaded, remove(model)[0].weight)
    weights, left = loaded.numel(), int((loaded != 0).sum())
    bits = {"8 bits": 8, "4 bits": 4}.get(way, 1)
    assert left < 0.11 * weights
    assert sizes["0.weight.mask"] == weights / 8
    assert sizes["0.weight.values"] == -(-left * bits // 8)


def test_a_state_dict_of_a_quantized_model_is_stored_as_it_is(tmp_path):
    model = quantized_mlp(weight_bits=4)
    save_compressed(model.state_dict(), tmp_path / "file")
    assert torch.equal(load_compressed(tmp_path / "file")["0.weight"], model[0].weight)


def test_quantizers_that_do_not_quantize_yet_change_nothing(tmp_path):
    model = mlp()
    quantize_(model, random(8, 64), steps=0)
    save_compressed(model, tmp_path / "file")
    assert torch.equal(load_compressed(tmp_path / "file")["0.weight"], mlp()[0].weight)


def test_a_file_of_the_first_format_is_read(tmp_path):
    import zstandard

    values = np.array([1.5, -2.0], dtype=np.float32)
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    stored = {"w.values": torch.from_numpy(planes), "w.mask": torch.tensor([0b01010000], dtype=torch.uint8)}
    layout = '{"w": {"shape": [2, 2], "dtype": "float32"}, "v": {"tied": "w"}}'
    blob = safetensors.torch.save(stored, {"format": "lightning_compress/1", "layout": layout})
    (tmp_path / "file").write_bytes(zstandard.ZstdCompressor().compress(blob))
    loaded = load_compressed(tmp_path / "file")
    assert loaded["w"].tolist() == [[0.0, 1.5], [0.0, -2.0]]
    assert loaded["v"] is loaded["w"]


@pytest.mark.parametrize("quantize", [False, True])
def test_only_packed_integers_need_the_second_format(quantize, tmp_path):
    import zstandard

    model = quantized_mlp(weight_bits=4) if quantize else mlp()
    save_compressed(model, tmp_path / "file")
    blob = zstandard.ZstdDecompressor().decompress((tmp_path / "file").read_bytes())
    assert (b"lightning_compress/2" in blob, b"lightning_compress/1" in blob) == (quantize, not quantize)


@pytest.mark.parametrize("damage", [{"bits": 3}, {"bits": None}, {"members": 7}, {"members": 0}, {"scales": 5}])
def test_a_packed_weight_that_does_not_fit_its_description_is_told_as_damage(damage, tmp_path):
    import zstandard

    save_compressed(quantized_mlp(weight_bits=4), tmp_path / "file")
    blob = zstandard.ZstdDecompressor().decompress((tmp_path / "file").read_bytes())
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    layout = json.loads(header["layout"])
    layout["0.weight"]["packed"] |= damage
    stored = safetensors.torch.load(blob)
    blob = safetensors.torch.save(stored, header | {"layout": json.dumps(layout)})
    (tmp_path / "file").write_bytes(zstandard.ZstdCompressor().compress(blob))
    with pytest.raises(CheckpointError, match="file is damaged, or was not written by save_compressed"):
        load_compressed(tmp_path / "file")
