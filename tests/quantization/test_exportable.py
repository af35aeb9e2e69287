import copy

import pytest
import torch
from torch import nn

from lightning_compress.core import CompressionError, select
from lightning_compress.quantization import Quantization, Settings
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.exportable import make_exportable_
from lightning_compress.quantization.operators import look_up
from lightning_compress.quantization.weights import WeightQuantizer
from tests.quantization.quantized import DEFAULTS, IDS, WAYS, Recurrent, bert, cnn, evaluated, mlp, quantize_, random

IMAGES, VECTORS = random(6, 4, 8, 8), random(8, 64)


def exportable(model):
    copied = copy.deepcopy(model).eval()
    return copied, make_exportable_(copied)


@pytest.mark.parametrize("bits", [8, 4, None])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("build", "batch"), [(mlp, VECTORS), (cnn, IMAGES), (Recurrent, IDS)], ids=["linear", "convolution", "recurrent"]
)
def test_the_export_form_computes_what_the_model_does(build, batch, way, bits):
    torch.manual_seed(0)
    model = build()
    quantize_(model, batch, include="*", activation_bits=bits, **WAYS[way])
    form, contents = exportable(model)
    torch.testing.assert_close(evaluated(form, batch), evaluated(model, batch), rtol=1e-4, atol=1e-5)
    assert not [part for part in form.modules() if isinstance(part, (WeightQuantizer, ActivationQuantizer))]
    parts = [part for _, part in model.named_modules(remove_duplicate=False)]  # tied weights share theirs
    assert len(contents.stored) + len(contents.dense) == sum(isinstance(part, WeightQuantizer) for part in parts)


def test_attention_of_a_transformer():
    model = bert()
    quantize_(model, IDS, include="*", attention=True)
    form, _ = exportable(model)
    torch.testing.assert_close(evaluated(form, IDS), evaluated(model, IDS), rtol=1e-4, atol=1e-5)


def test_layers_stay_what_their_parents_look_for():
    model = bert()
    quantize_(model, IDS, include="*")
    form, _ = exportable(model)
    kinds = (nn.Linear, nn.Embedding, nn.LayerNorm)
    for (name, before), (_, after) in zip(_layers(model), _layers(form), strict=True):
        assert [isinstance(after, kind) for kind in kinds] == [isinstance(before, kind) for kind in kinds], name


def _layers(model):
    return [(name, module) for name, module in model.named_modules() if "quantizer" not in name]


@pytest.mark.parametrize("scale", [random(1).abs(), random(5, 1).abs()], ids=["one", "one an entry"])
def test_entries_that_are_looked_up_are_their_stored_numbers_times_a_scale(scale):
    values, indices = torch.arange(-10, 10, dtype=torch.int8).view(5, 4), torch.tensor([[4, 0, 0], [1, 2, 3]])
    expected = (values.numpy().astype("float32") * scale.numpy())[indices.numpy()]
    assert (look_up(indices, values, scale).numpy() == expected).all()
    torch.library.opcheck(look_up, (indices, values, scale), test_utils=("test_schema", "test_faketensor"))


def test_names_of_buffers_in_four_bits():
    model = mlp()
    quantize_(model, VECTORS, weight_bits=4, activation_bits=None)
    form, contents = exportable(model)
    buffers = dict(form.named_buffers())
    assert contents.four_bits == ["0.weight_quantizer.values", "2.weight_quantizer.values"]
    assert all(buffers[name].abs().max() <= 7 for name in contents.four_bits)


def test_a_weight_that_is_not_quantized_yet_is_refused():
    model = mlp()
    settings = Settings(**DEFAULTS | {"activation_bits": None})
    Quantization(
        model, select(model), settings, overrides={}, attention=False, fold_batchnorm=False, residual_sums=False
    )
    with pytest.raises(CompressionError, match=r"0.weight is not quantized yet"):
        exportable(model)
