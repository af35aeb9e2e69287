import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress import CompressionError, load_compressed
from lightning_compress.recipes.point_figures import change, ideal_bytes, pruned_by_name, write_weights
from lightning_compress.recipes.uniform import quantize_uniformly_


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 20))
    net[3].weight = net[0].weight  # tied
    net[2].weight.data += 0.1 * torch.rand(8)
    net[1].weight.data[:4] = 0.0  # pruned
    return net


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_every_parameter_lies_on_equally_spaced_numbers_of_its_range(bits):
    net, before = model(), model()
    quantize_uniformly_(net, bits)
    for (name, after), dense in zip(net.named_parameters(), before.parameters(), strict=True):
        w, v = dense.detach().double().numpy(), after.detach().double().numpy()
        low, high = w.min(), w.max()
        width = (high - low) / (2**bits - 1)  # numpy's own grid, from the smallest to the largest
        places = np.unique(v)
        assert len(places) <= 2**bits, name
        if bits < 8:
            distances = (places - places[0]) / (width or 1.0)
            assert np.allclose(distances, distances.round(), atol=1e-4), name
        farthest = width if bits < 8 else 2 * width  # zero in the middle stretches a range, at most to twice its length
        assert abs(v - w).max() <= farthest / 2 * 1.0001 + (width / 2 if low < 0 < high else 0), name
        assert (v[w == 0] == 0).all(), name
    assert net[3].weight is net[0].weight


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_in_the_file_are_the_numbers_in_the_model(bits, tmp_path):
    net = model()
    baked = quantize_uniformly_(net, bits)
    size = write_weights(net, baked, tmp_path)
    (file,) = tmp_path.iterdir()
    assert size == file.stat().st_size
    loaded = load_compressed(file)
    assert loaded.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_bytes_fall_with_the_bits(tmp_path):
    torch.manual_seed(0)
    sizes = {}
    for bits in (8, 6, 4, 2):
        net = nn.Linear(200, 200)
        baked = quantize_uniformly_(net, bits)
        sizes[bits] = write_weights(net, baked, tmp_path)
        assert sizes[bits] < 1.1 * 200 * 201 * bits / 8 + 600
    assert sizes[8] > sizes[6] > sizes[4] > sizes[2]


def test_figures_by_hand():
    net, dense = model(), dict(model().named_parameters())
    parameters = 20 * 8 + 8 * 8 + 8 + 8 + 8 + 20
    assert ideal_bytes(net, {}, {}) == 4 * parameters
    with torch.no_grad():
        net[1].weight[4:6] = 0.0
    pruned = pruned_by_name(net, dense)
    assert {name: count for name, count in pruned.items() if count} == {"1.weight": 16}
    baked = quantize_uniformly_(net, 4)
    spanned = 8 * ("2.weight" not in baked)  # a norm's weight has no zero in its range: stored as numbers
    assert ideal_bytes(net, pruned, baked, 4) == (parameters - 16) / 2
    assert ideal_bytes(net, pruned, baked) == (parameters - 16 - spanned) / 2 + 4 * spanned


def test_error_is_that_of_all_weights_together():
    net, before = model(), model()
    quantize_uniformly_(net, 3)
    error = change(before, net)
    w = np.concatenate([p.detach().double().numpy().ravel() for p in before.parameters()])
    v = np.concatenate([p.detach().double().numpy().ravel() for p in net.parameters()])
    assert error.mean_squared == pytest.approx(((v - w) ** 2).mean())
    assert error.relative == pytest.approx(np.linalg.norm(v - w) / np.linalg.norm(w))


def test_a_weight_that_is_no_number():
    net = nn.Linear(2, 2)
    net.weight.data[0, 0] = torch.nan
    with pytest.raises(CompressionError, match=r"weight holds NaN"):
        quantize_uniformly_(net, 4)
