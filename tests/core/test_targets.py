import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from lightning_compress.core import TargetError, select
from lightning_compress.core.targets import matches_any, skipped_layers, targets

BERT_LAYER = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
GPT2_BLOCK = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def names(model, **options):
    return [target.name for target in select(model, **options)]


def bert(kind=BertForSequenceClassification):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 8, "vocab_size": 16}
    return kind(BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes))


def gpt2():
    tokens = {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=8, **tokens))


def encoder_weights():
    return [f"bert.encoder.layer.{layer}.{part}.weight" for layer in range(2) for part in BERT_LAYER]


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)


def test_of_a_bert_classifier_the_encoder_and_the_pooler_are_chosen():
    assert names(bert()) == [*encoder_weights(), "bert.pooler.dense.weight"]


def test_of_a_masked_language_model_the_tied_decoder_is_left_alone():
    assert names(bert(BertForMaskedLM)) == [*encoder_weights(), "cls.predictions.transform.dense.weight"]


def test_of_gpt2_every_block_is_chosen_and_its_dimensions_are_swapped():
    chosen = select(gpt2())
    assert [target.name for target in chosen] == [
        f"transformer.h.{block}.{part}.weight" for block in range(2) for part in GPT2_BLOCK
    ]
    for target in chosen:
        output, inputs = target.dims
        sizes = (target.parameter.shape[output], target.parameter.shape[inputs])
        assert sizes == (target.module.nf, target.module.nx)


def test_of_a_cnn_convolutions_and_linear_layers_are_chosen_but_no_head_and_no_norm():
    chosen = select(ConvNet())
    assert [target.name for target in chosen] == ["stem.weight", "up.weight", "hidden.weight"]
    for target in chosen[:2]:
        output, inputs = target.dims
        sizes = (target.parameter.shape[output], target.parameter.shape[inputs])
        assert sizes == (target.module.out_channels, target.module.in_channels)


def test_the_bare_parameters_of_torch_attention_are_chosen():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, dim_feedforward=16), nn.Linear(8, 2))
    parts = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert names(model) == [f"0.{part}" for part in parts]


def test_attention_with_other_key_sizes_has_three_projections():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, kdim=6, vdim=4), "head": nn.Linear(8, 2)})
    parts = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert names(model) == [f"attention.{part}" for part in parts]


def test_a_tied_parameter_counts_once_and_answers_to_both_names():
    model = bert(BertForMaskedLM)
    [by_embedding] = select(model, include="*.word_embeddings.weight")
    [by_decoder] = select(model, include="cls.predictions.decoder.weight")
    assert by_embedding.parameter is by_decoder.parameter is model.get_output_embeddings().weight
    assert by_decoder.aliases == ("cls.predictions.decoder.weight",)
    assert matches_any(by_embedding, "*.decoder.weight")
    everything = select(model, include="*")
    assert len({id(target.parameter) for target in everything}) == len(everything)


def test_excluding_one_name_of_a_tied_parameter_excludes_the_parameter():
    model = bert(BertForMaskedLM)
    chosen = names(model, include="*", exclude="*.decoder.weight")
    assert "bert.embeddings.word_embeddings.weight" not in chosen


def test_compiling_changes_no_name():
    model, inner = bert(), bert()
    inner.bert.encoder.layer[0] = torch.compile(inner.bert.encoder.layer[0], backend="eager")
    expected = names(model)
    assert names(torch.compile(model, backend="eager")) == expected
    assert names(inner) == expected
    assert names(inner, include="bert.encoder.layer.0.output.dense.weight") == [encoder_weights()[5]]


def test_a_target_reads_the_parameter_that_the_module_holds_now():
    model = ConvNet()
    target = select(model)[0]
    model.stem.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
    assert target.parameter is model.stem.weight


def test_frozen_layers_are_left_out_and_can_be_listed():
    model = ConvNet()
    model.stem.requires_grad_(requires_grad=False)
    assert names(model) == ["up.weight", "hidden.weight"]
    assert skipped_layers(model) == {"stem": "it is frozen"}
    assert names(model, include="stem.weight") == ["stem.weight"]


def test_a_frozen_classifier_is_still_the_classifier():
    model = ConvNet()
    model.head.requires_grad_(requires_grad=False)
    assert names(model) == ["stem.weight", "up.weight", "hidden.weight"]


def test_include_reaches_embeddings_and_classifiers():
    chosen = names(bert(), include="*")
    assert {"bert.embeddings.word_embeddings.weight", "classifier.weight"} <= set(chosen)
    assert not [name for name in chosen if "LayerNorm" in name or name.endswith("bias")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.layer.1.*", encoder_weights()[6:]),
        ("*.attention.self.query.weight", encoder_weights()[::6]),
        ("bert.encoder.layer.0.attention.self.key", [encoder_weights()[1]]),
        (r"re:bert\.encoder\.layer\.\d\.output\.dense\.weight", encoder_weights()[5::6]),
        (["*.layer.1.output.dense.weight", "*.layer.0.output.dense.weight"], encoder_weights()[5::6]),
    ],
    ids=["glob", "glob over layers", "module name", "regex", "several, in the model's order"],
)
def test_patterns(pattern, expected):
    assert names(bert(), include=pattern) == expected


def test_a_regex_must_match_the_whole_name():
    model = ConvNet()
    assert names(model, include=r"re:.*head.*") == ["head.weight"]
    assert names(model, include=[r"re:stem\.weight", r"re:he.d\.weight"]) == ["stem.weight", "head.weight"]
    with pytest.raises(TargetError, match="matches no parameter"):
        select(model, include="re:head")


def test_exclude_is_taken_away_from_the_defaults_and_from_include():
    assert names(ConvNet(), exclude="up.*") == ["stem.weight", "hidden.weight"]
    assert names(ConvNet(), include="*", exclude=["stem", "h*"]) == ["up.weight"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.bias", ["stem.bias", "norm.bias", "up.bias", "hidden.bias", "head.bias"]),
        ("norm.weight", ["norm.weight"]),
        ("head.*", ["head.weight"]),
        (["head.weight", "head.bias"], ["head.weight", "head.bias"]),
    ],
)
def test_biases_and_norms_only_when_spelled(pattern, expected):
    assert names(ConvNet(), include=pattern) == expected


def test_a_digit_inside_a_number_does_not_spell_a_norm():
    blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(11)])
    assert names(nn.ModuleDict({"layers": blocks}), include="layers.10.*") == ["layers.10.1.weight"]


def test_targets_shows_every_parameter_and_marks_the_chosen():
    lines = targets(ConvNet(), exclude="up").splitlines()
    assert len(lines) == len(list(ConvNet().parameters()))
    assert [line for line in lines if line.startswith("+")] == [
        "+ stem.weight  [4, 3, 3, 3]",
        "+ hidden.weight  [5, 6]",
    ]
    assert "  norm.weight  [4]" in lines


@pytest.mark.parametrize(
    "reparametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda layer: nn.utils.prune.random_unstructured(layer, "weight", 0.5),
    ],
)
def test_computed_weights_are_left_out_and_listed(reparametrize):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    reparametrize(model[0])
    assert [target.name for target in select(model)] == ["1.weight"]
    assert skipped_layers(model) == {"0": "its weight is computed from other parameters"}
