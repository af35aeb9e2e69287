"""The judge is the teacher: its layers, and what it computes."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from examples.rotten_tomatoes import minilm
from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.student import student_from_teacher
from lightning_compress.modules import TransformerModule

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "bert": ("BertForSequenceClassification", {}),
    "roberta": ("RobertaForMaskedLM", {}),
    "distilbert": ("DistilBertForSequenceClassification", {"dim": 16, "n_layers": 6, "n_heads": 2, "hidden_dim": 24}),
    "electra": ("ElectraForSequenceClassification", {"embedding_size": 8}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "modernbert": ("ModernBertForMaskedLM", {"global_attn_every_n_layers": 2, "local_attention": 4}),
    "vit": ("ViTForImageClassification", {"image_size": 8, "patch_size": 4}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 6, "n_head": 2}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "use_sliding_window": True, "max_window_layers": 3},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    ),
}


def build(kind, **changes):
    torch.manual_seed(0)
    name, settings = MODELS[kind]
    own = AutoConfig.for_model(kind)
    known = {key: value for key, value in SHAPE.items() if hasattr(own, key) and key not in own.attribute_map}
    config = AutoConfig.for_model(kind, **known | settings | changes, initializer_range=0.3)
    return getattr(transformers, name)(config).eval()


@torch.no_grad()
def logits(model):
    generator = torch.Generator().manual_seed(5)
    if hasattr(model.config, "image_size"):
        return model(pixel_values=torch.randn(3, 3, 8, 8, generator=generator)).logits
    ids = torch.randint(3, 40, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    caches = {"use_cache": False} if hasattr(model.config, "use_cache") and model.can_generate() else {}
    return model(input_ids=ids, attention_mask=mask, **caches).logits


def stack_of(model):
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers)


@pytest.mark.parametrize("kind", MODELS)
def test_with_all_layers_it_computes_what_the_teacher_does(kind):
    teacher = build(kind)
    student = student_from_teacher(teacher)
    assert type(student) is type(teacher)
    assert torch.equal(logits(student), logits(teacher))
    assert not {id(one) for one in student.parameters()} & {id(one) for one in teacher.parameters()}


@pytest.mark.parametrize("kind", MODELS)
def test_chosen_layers_are_the_teachers_and_the_others_are_skipped(kind):
    teacher = build(kind)
    before = copy.deepcopy(teacher.state_dict())
    student = student_from_teacher(teacher, [0, 3, 5])
    assert (student.config.num_hidden_layers, len(stack_of(student)), teacher.config.num_hidden_layers) == (3, 3, 6)
    for own, other in zip(stack_of(student), [stack_of(teacher)[index] for index in (0, 3, 5)], strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in own.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    # The teacher itself, less the layers that were left out, is the judge.
    judge = copy.deepcopy(teacher)
    stack = stack_of(judge)
    for index in (4, 2, 1):
        del stack[index]
    judge.config.num_hidden_layers = 3
    if getattr(judge.config, "layer_types", None):
        judge.config.layer_types = [judge.config.layer_types[index] for index in (0, 3, 5)]
        assert student.config.layer_types == judge.config.layer_types
    torch.testing.assert_close(logits(student), logits(judge))


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "roberta"])
def test_ties_stay_and_so_do_generation_settings(kind):
    teacher = build(kind)
    if kind != "roberta":
        teacher.generation_config.max_new_tokens = 7
    student = student_from_teacher(teacher, 2)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert kind == "roberta" or student.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_student_generates_with_a_cache(kind):
    student = student_from_teacher(build(kind), "last", num_layers=2)
    ids = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache, without = (student.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"layers": 3}, [1, 3, 5]),
        ({"layers": "uniform", "num_layers": 2}, [2, 5]),
        ({"layers": "last", "num_layers": 2}, [4, 5]),
        ({"layers": (4, 1)}, [4, 1]),
        ({"layers": range(0, 6, 2)}, [0, 2, 4]),
    ],
)
def test_ways_to_choose(arguments, expected):
    teacher = build("bert")
    chosen = [layer.output.dense.weight for layer in stack_of(student_from_teacher(teacher, **arguments))]
    layers = stack_of(teacher)
    assert all(torch.equal(one, layers[at].output.dense.weight) for one, at in zip(chosen, expected, strict=True))


def test_mode_number_type_and_random_state():
    teacher = build("llama").to(torch.bfloat16).train()
    before = torch.get_rng_state()
    student = student_from_teacher(teacher, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert student.training
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_real_student_survives_a_folder(tmp_path):
    teacher = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=3)
    student = student_from_teacher(teacher, [0, 2, 4])
    assert (student.config.num_hidden_layers, student.config.num_labels) == (3, 3)
    ids = torch.randint(1000, 2000, (2, 7))
    output = student(input_ids=ids).logits
    assert output.isfinite().all()
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits, output)
    assert TransformerModule(student, num_labels=3).model is student


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, r"layers=\[\]\): expected some of the teacher's layers 0 to 5, each once"),
        ({"layers": [0, 6]}, r"layers=\[0, 6\]\): expected some of the teacher's layers 0 to 5"),
        ({"layers": [-1]}, r"layers=\[-1\]\): expected"),
        ({"layers": [0, 0]}, r"layers=\[0, 0\]\): expected .* each once"),
        ({"layers": [True]}, r"layers=\[True\]\): expected"),
        ({"layers": 0}, r"num_layers=0\): how many\? The teacher has 6"),
        ({"layers": 7}, r"num_layers=7\): how many\? The teacher has 6"),
        ({"layers": "last"}, r"layers='last', num_layers=None\): how many\?"),
        ({"layers": "first", "num_layers": 2}, "layers='first': expected 'uniform', 'last'"),
        ({"layers": [0, 1], "num_layers": 2}, "num_layers goes with a rule"),
    ],
)
def test_layers_that_cannot_be(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        student_from_teacher(build("bert"), **arguments)


def test_teachers_that_cannot_be():
    module = TransformerModule({"model_type": "bert", **{k: v for k, v in SHAPE.items() if "token" not in k}})
    with pytest.raises(
        ConfigurationError, match=r"TransformerModule\): expected a Hugging Face model, such as module.model"
    ):
        student_from_teacher(module, 2)
    with pytest.raises(ConfigurationError, match=r"student_from_teacher\(str\): expected a Hugging Face model"):
        student_from_teacher("bert-base-uncased", 2)
    t5 = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=40)
    with pytest.raises(ConfigurationError, match="made of several models"):
        student_from_teacher(transformers.T5ForConditionalGeneration(t5), 1)
    albert = transformers.AlbertConfig(**SHAPE | {"embedding_size": 8})
    with pytest.raises(ConfigurationError, match="it shares them or keeps them elsewhere"):
        student_from_teacher(transformers.AlbertModel(albert), 2)
    changed = build("bert")
    changed.classifier = nn.Linear(16, 7)
    with pytest.raises(ConfigurationError, match=r"(?s)other weights than the teacher has.*classifier"):
        student_from_teacher(changed, 2)
