from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, LlamaConfig

from lightning_compress import ConfigurationError
from lightning_compress.recipes import transformer_sizes
from lightning_compress.recipes.sizes import check_sizes, described, name_of


def test_every_depth_at_every_width_becomes_a_model_of_that_shape():
    base = BertConfig(vocab_size=50, max_position_embeddings=16)
    sizes = transformer_sizes(base, depth=[1, 3], width=[64, 192])
    assert [size.name for size in sizes] == [
        "depth 1, width 64",
        "depth 1, width 192",
        "depth 3, width 64",
        "depth 3, width 192",
    ]
    for size, (depth, width) in zip(sizes, [(1, 64), (1, 192), (3, 64), (3, 192)], strict=True):
        model = AutoModelForSequenceClassification.from_config(size)
        layers = model.bert.encoder.layer
        assert len(layers) == depth
        assert layers[0].attention.self.query.weight.shape == (width, width)
        assert layers[0].intermediate.dense.weight.shape == (4 * width, width)
        assert size.num_attention_heads * 64 == width  # a head stays as wide as the base's
    assert (base.num_hidden_layers, base.hidden_size) == (12, 768)


def test_names_of_a_class_of_its_own_are_followed():
    (size,) = transformer_sizes(DistilBertConfig(), width=[96])
    assert (size.dim, size.hidden_dim, size.n_heads) == (96, 384, 1)  # 1.5 heads, of two as near the fewer
    (llama,) = transformer_sizes(LlamaConfig(num_attention_heads=32, num_key_value_heads=8), width=[1024])
    assert (llama.num_attention_heads, llama.num_key_value_heads) == (8, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_config": object()}, "has no num_hidden_layers"),
        ({"base_config": BertConfig(), "depth": [0]}, "0 is no whole number"),
        ({"base_config": BertConfig(), "width": "64"}, "write width="),
    ],
)
def test_sizes_that_cannot_be(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        transformer_sizes(arguments.pop("base_config"), **arguments)


@dataclass
class Shape:
    depth: int
    width: int


def test_names():
    assert [name_of(size) for size in ("tiny", 16, {"width": 8}, Shape(2, 4))] == [
        "tiny",
        "16",
        "width 8",
        "depth 2, width 4",
    ]
    assert described(Shape(2, 4)) == {"depth": 2, "width": 4}
    assert described({"loss": torch.nn.MSELoss()}) == {"loss": "torch.nn.modules.loss.MSELoss"}


@pytest.mark.parametrize("sizes", [[], "ab", [1, 1], {"a": 1}, 4])
def test_no_list_of_sizes(sizes):
    with pytest.raises(ConfigurationError, match="sizes"):
        check_sizes(sizes)
