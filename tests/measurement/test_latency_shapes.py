import numpy as np
import pytest
import torch

from lightning_compress.core import ConfigurationError
from lightning_compress.measurement.shapes import Feed, sizes

TOKENS = torch.arange(12).reshape(3, 4)


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (3, 4), (7, 4), (2, 9), (8, 8)])
def test_batches_and_lengths_are_repeated_or_cut(batch, length):
    expected = np.tile(TOKENS.numpy(), (8, 8))[:batch, :length]
    (tensor,) = Feed(TOKENS).resized(batch, length).tensors
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_only_what_shares_the_size_changes():
    images, positions, scalar = torch.randn(3, 4, 5), torch.arange(5)[None], torch.tensor(2.0)
    feed = Feed({"tokens": TOKENS, "images": images, "positions": positions, "scale": scalar}).resized(6, 2)
    assert feed.names == ["tokens", "images", "positions", "scale"]
    assert [tuple(tensor.shape) for tensor in feed.tensors] == [(6, 2), (6, 2, 5), (1, 5), ()]


def test_without_a_size_inputs_stay_and_the_given_ones_are_never_changed():
    feed = Feed([TOKENS])
    torch.testing.assert_close(feed.resized(None, None).tensors, [TOKENS])
    feed.resized(1, 1)
    assert feed.tensors[0].shape == (3, 4)


def test_batch_and_length_of_tokens_images_and_numbers():
    assert (Feed(TOKENS).batch, Feed(TOKENS).length) == (3, 4)
    images = Feed(torch.randn(5, 3, 8, 8))
    assert (images.batch, images.length) == (5, None)
    assert (Feed(torch.randn(2, 9)).batch, Feed(torch.randn(2, 9)).length) == (2, None)
    assert (Feed(torch.tensor(1.0)).batch, Feed(torch.tensor(1.0)).length) == (1, None)


def test_by_place_and_by_name_as_tensors_and_as_arrays():
    places, names = Feed(TOKENS.numpy()).travelling(as_arrays=False)
    torch.testing.assert_close(places, [TOKENS])
    assert names == {}
    places, names = Feed({"tokens": TOKENS}).travelling(as_arrays=True)
    assert (places, list(names)) == ([], ["tokens"])
    np.testing.assert_array_equal(names["tokens"], TOKENS.numpy())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("text", "inputs= holds str"),
        (3, "inputs= is int"),
        ([], "inputs= holds nothing"),
        ({"tokens": TOKENS, "return_dict": True}, "inputs= holds Tensor, bool"),
    ],
)
def test_what_is_no_input_is_refused(inputs, message):
    with pytest.raises(ConfigurationError, match=message):
        Feed(inputs)


def test_a_size_that_no_input_has_is_refused():
    with pytest.raises(ConfigurationError, match="batch_sizes= holds 4, and no tensor"):
        Feed(torch.tensor(1.0)).resized(4, None)
    with pytest.raises(ConfigurationError, match="lengths= holds 4, and no tensor"):
        Feed(torch.randn(3)).resized(None, 4)


def test_numbers_that_numpy_lacks_are_refused_for_files():
    with pytest.raises(ConfigurationError, match="inputs= cannot be given to a file"):
        Feed(TOKENS.bfloat16()).travelling(as_arrays=True)


@pytest.mark.parametrize("wrong", [0, 4, (), (0,), (1, -2), (1.5,), (True,)])
def test_a_sweep_is_of_positive_whole_numbers(wrong):
    with pytest.raises(ConfigurationError, match="batch_sizes="):
        sizes("batch_sizes", wrong)


def test_without_a_sweep_there_is_the_size_of_the_inputs():
    assert sizes("lengths", None) == [None]
    assert sizes("lengths", (8, 2)) == [8, 2]
