"""A quantized weight that something else than its layer computes with is named."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_compress import quantize
from lightning_compress.quantization.past_reads import PastReads

TOKENS = torch.randint(20, (8, 6), generator=torch.Generator().manual_seed(0))
READERS = {
    "linear": lambda hidden, words: F.linear(hidden, words.weight),
    "@ .T": lambda hidden, words: hidden @ words.weight.T,
    "matmul": lambda hidden, words: torch.matmul(hidden, words.weight.transpose(0, 1)),
    "einsum": lambda hidden, words: torch.einsum("bth,vh->btv", hidden, words.weight),
    "a part": lambda hidden, words: F.linear(hidden, words.weight[:4]),
}


class Tagger(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.words, self.middle, self.last = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.read = read

    def forward(self, tokens):
        return self.read(self.middle(self.words(tokens)), self.words)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_quantize_names_it(read):
    with pytest.warns(UserWarning, match=r"something else than its layer computes with words\.weight.*exclude='words"):
        quantize(Tagger(read), [TOKENS], include="*", exclude="last*")


def of_its_type(hidden, words):
    return hidden.to(words.weight.dtype) * words.weight.shape[0]


def once_more(hidden, words):
    return hidden + words(TOKENS)


@pytest.mark.parametrize("read", [of_its_type, once_more])
def test_other_reads_are_none(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(Tagger(read), [TOKENS], include="*", exclude="last*", activation_bits=None)


def test_a_head_that_is_tied_as_a_layer_is_none():
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, attn_pdrop=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(GPT2LMHeadModel(config), [{"input_ids": TOKENS}], include="*")


def test_nothing_is_left_on_the_model():
    quantized = quantize(Tagger(once_more), [TOKENS], include="*", exclude="last*")
    hooks = [hook for module in quantized.modules() for hook in module._forward_pre_hooks.values()]
    assert not [hook for hook in hooks if isinstance(getattr(hook, "__self__", None), PastReads)]


def test_a_forward_that_was_interrupted_leaves_no_mode():
    def interrupt(hidden, words):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(Tagger(interrupt), [TOKENS], include="*", exclude="last*")
    assert not torch.overrides._get_current_function_mode_stack()
