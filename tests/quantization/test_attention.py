"""The matrix products inside the attention of Hugging Face models."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_compress.quantization.attention import INPUTS, attention_modules, is_quantized_attention
from lightning_compress.quantization.model import strip_
from tests.quantization.models import quantized
from tests.quantization.test_layers import input_on_grid

IDS = torch.randint(3, 50, (4, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, 4:] = 0


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return AutoModelForSequenceClassification.from_config(
        BertConfig(vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    )


def distilbert():
    return AutoModelForSequenceClassification.from_config(
        DistilBertConfig(
            vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, dropout=0.0, attention_dropout=0.0
        )
    )


def gpt2():
    return AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
    )


def llama():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=50, intermediate_size=32, **sizes))


TEXT = {"input_ids": IDS, "attention_mask": MASK}


@pytest.mark.parametrize("make", [bert, distilbert, gpt2, llama])
def test_without_rounding_it_is_the_attention_of_the_model(make):
    torch.manual_seed(0)
    model = make().eval()
    expected = model(**TEXT).logits
    other = copy.deepcopy(model)
    quantized(other, TEXT)
    modules = attention_modules(other)
    assert len(modules) == 2
    assert all(is_quantized_attention(module) for module in modules.values())
    for module in other.modules():
        if hasattr(module, "active"):
            module.active = False
    other.eval()
    assert other.config._attn_implementation == "lightning_compress"
    torch.testing.assert_close(other(**TEXT).logits, expected, rtol=1e-4, atol=1e-5)


def symmetric(tensor):
    """8 bits, by numpy, as long on both sides as the tensor's largest number: runtimes want one zero point at most."""
    array = tensor.detach().numpy()
    scale = np.float32(np.abs(array).max() / np.float32(127))
    return torch.from_numpy(np.clip(np.round(array / scale), -127, 127) * scale).float()


def test_quantizers_stand_on_query_key_softmax_and_value():
    torch.manual_seed(0)
    model = bert().eval()
    quantized(model, TEXT)
    module = model.bert.encoder.layer[0].attention.self
    assert {name for name, _ in module.named_children()} >= {f"{part}_quantizer" for part in INPUTS}
    low, high = module.softmax_quantizer.seen[:2]
    assert low >= 0
    assert high <= 1
    shape = (2, 2, 5, 8)
    query, key, value = torch.randn(3, *shape).unbind()
    for part, tensor in {"query": query, "key": key, "value": value}.items():
        getattr(module, f"{part}_quantizer").seen[:2] = torch.stack(torch.aminmax(tensor))
    scores = F.softmax(symmetric(query) @ symmetric(key).mT / 8**0.5, dim=-1)
    module.softmax_quantizer.seen[:2] = torch.stack(torch.aminmax(scores))
    expected = (input_on_grid(scores) @ symmetric(value)).transpose(1, 2)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    found, _ = attend(module, query, key, value, None, scaling=8**-0.5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_can_be_declined_and_taken_off():
    model = bert()
    before = model.config._attn_implementation
    quantized(model, TEXT, attention=False)
    assert model.config._attn_implementation == before
    quantized(model, TEXT)
    assert model.config._attn_implementation == "lightning_compress"
    strip_(model)
    assert model.config._attn_implementation == before
    assert {type(module).__module__.partition(".")[0] for module in model.modules()} == {"torch", "transformers"}


def test_saved_config_knows_nothing_of_us(tmp_path):
    model = bert()
    quantized(model, TEXT)
    model.config.save_pretrained(tmp_path)
    assert "lightning_compress" not in (tmp_path / "config.json").read_text()


def test_weights_alone_leave_attention_as_it_is():
    model = bert()
    quantized(model, TEXT, activation_bits=None)
    assert not any(is_quantized_attention(module) for module in attention_modules(model).values())


def test_another_model_of_the_same_config_attends_as_usual():
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    first, second = (AutoModelForSequenceClassification.from_config(config).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    expected = second(**TEXT).logits
    quantized(first, TEXT)
    torch.testing.assert_close(second(**TEXT).logits, expected, rtol=1e-5, atol=1e-6)


def test_images():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    model = ViTForImageClassification(config)
    quantized(model, {"pixel_values": torch.randn(2, 3, 8, 8)})
    assert all(is_quantized_attention(module) for module in attention_modules(model).values())
