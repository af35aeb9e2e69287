"""Bits side by side: numpy is the judge."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress import ConfigurationError
from lightning_compress.quantization.packing import pack, unpack

BITS = range(1, 9)


def integers(bits, count):
    return torch.from_numpy(np.random.default_rng(count).integers(0, 2**bits, count))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 1001])
def test_the_stream_of_bits_is_that_of_numpy(bits, count):
    numbers = integers(bits, count)
    table = (numbers.numpy()[:, None] >> np.arange(bits)) & 1  # one row a number, its lowest bit first
    expected = np.packbits(table.astype(np.uint8).flatten(), bitorder="little")
    packed = pack(numbers, bits)
    assert packed.dtype == torch.uint8
    np.testing.assert_array_equal(packed.numpy(), expected)


@given(st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_every_list_comes_back(drawn):
    bits, numbers = drawn
    packed = pack(torch.tensor(numbers, dtype=torch.int16), bits)
    assert len(packed) == -(-len(numbers) * bits // 8)
    assert unpack(packed, bits, len(numbers)).tolist() == numbers


@given(st.binary(max_size=64), st.integers(1, 8))
def test_every_whole_stream_comes_back(stream, bits):
    packed = torch.frombuffer(bytearray(stream), dtype=torch.uint8) if stream else torch.zeros(0, dtype=torch.uint8)
    count = len(stream) * 8 // bits
    if count * bits == len(stream) * 8:
        assert torch.equal(pack(unpack(packed, bits, count), bits), packed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_shape_and_integer_type(dtype):
    numbers = torch.tensor([[1, 2, 3], [0, 3, 1]], dtype=dtype)
    assert torch.equal(pack(numbers, 2), pack(numbers.flatten(), 2))
    assert unpack(pack(numbers.T, 2), 2, 6).tolist() == [1, 0, 2, 3, 3, 1]


@pytest.mark.parametrize("bits", [0, 9, 2.0, True, None])
def test_bits_out_of_range(bits):
    with pytest.raises(ConfigurationError, match=f"bits={bits!r}: write 1 to 8"):
        pack(torch.tensor([1]), bits)
    with pytest.raises(ConfigurationError, match=f"bits={bits!r}: write 1 to 8"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


@pytest.mark.parametrize("numbers", [[0, 4], [-1, 2]])
def test_integers_that_do_not_fit(numbers):
    with pytest.raises(ConfigurationError, match=r"integers from -?\d to \d do not fit into bits=2, which hold 0 to 3"):
        pack(torch.tensor(numbers), 2)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_another_number_of_bytes(size):
    with pytest.raises(ConfigurationError, match=f"{size} bytes are not count=5 integers of bits=3, which take 2"):
        unpack(torch.zeros(size, dtype=torch.uint8), 3, 5)
