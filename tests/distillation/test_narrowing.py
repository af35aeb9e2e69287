"""The judge is a teacher whose residual stream lies in a subspace of the student's width: nothing is lost of it."""

import math

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification

from examples.rotten_tomatoes import minilm
from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import narrowing
from lightning_compress.distillation.families import family_of
from lightning_compress.distillation.stream import Weights, leading_basis
from lightning_compress.distillation.student import student_from_teacher
from tests.distillation.test_student import build, logits, stack_of

WIDE, NARROW = 16, 8
EXACT = {
    "bert": {},
    "distilbert": {},
    "electra": {"embedding_size": 12},
    "vit": {},
    "gpt2": {"tie_word_embeddings": False},
    "opt": {"tie_word_embeddings": False},
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": False},
}


@torch.no_grad()
def in_a_subspace(kind, **changes):
    """A teacher that writes to half the dimensions alone, with half its heads, and with a head that needs as many."""
    teacher = build(kind, **changes)
    generator = torch.Generator().manual_seed(3)
    family, stack = family_of(teacher.config), stack_of(teacher)
    name_of_stack = next(name for name, module in teacher.named_modules() if module is stack)
    base = teacher.get_submodule(name_of_stack.removesuffix(family.stack).rstrip("."))
    project = projection(generator, keeps_mean=family.removes_mean)
    for name, weight in base.named_parameters():
        if name in family.tables and weight.shape[-1] == WIDE:
            weight.copy_(weight @ project)
    for layer in stack if not family.has_free_heads else ():  # the second head says nothing
        weight = layer.get_submodule(family.attention_out).weight
        (weight if family.is_transposed else weight.T)[WIDE // 2 :] = 0
    inside = [layer.get_submodule(name) for layer in stack for name in (family.attention_out, family.neurons_out)]
    for module in inside + [module for name, module in base.named_modules() if name in family.writers]:
        project_(module, project, generator, is_transposed=family.is_transposed)
    if family.is_norm_first:
        vary_norms_(base, family, generator, has_bias_after=kind == "vit")
    else:
        halve_dense_(teacher)
    return teacher


def projection(generator, *, keeps_mean):
    basis = torch.randn(WIDE, NARROW, generator=generator)
    if keeps_mean:  # the rest of the subspace has no mean
        basis -= basis.mean(0)
        basis[:, 0] = 1
    basis = torch.linalg.qr(basis).Q
    return basis @ basis.T


def project_(module, project, generator, *, is_transposed):
    matrix = (module.weight.T if is_transposed else module.weight).flatten(1)
    matrix = project @ matrix
    module.weight.copy_(matrix.T if is_transposed else matrix.view_as(module.weight))
    vary_bias_(module, generator)
    if module.bias is not None:
        module.bias.copy_(project @ module.bias)


def halve_dense_(teacher):
    """Of a dense layer in the head, half of the neurons count."""
    for name in ("classifier", "classifier.out_proj"):
        head = dict(teacher.named_modules()).get(name)
        if isinstance(head, nn.Linear):
            head.weight[:, NARROW:] = 0


def vary_norms_(base, family, generator, *, has_bias_after):
    """Weights that differ are no obstacle where norms come before what reads them."""
    last = base.get_submodule(family.final_norm)
    layers = base.get_submodule(family.stack)
    inside = [layer.get_submodule(name) for layer in layers for name in (family.attention_norm, family.neurons_norm)]
    for norm in (*inside, last):
        nn.init.normal_(norm.weight, 1, 0.3, generator=generator)
        if has_bias_after or norm is not last:
            vary_bias_(norm, generator)


def vary_bias_(module, generator):
    if getattr(module, "bias", None) is not None:
        nn.init.normal_(module.bias, 0, 0.3, generator=generator)


def shuffled_basis(tables, matrices, width, *, keeps_mean):
    """Any directions, in place of the leading ones."""
    generator = torch.Generator().manual_seed(9)
    noise = [torch.randn(matrices[0].shape[0], 50, generator=generator)]
    return leading_basis([], noise, width, keeps_mean=keeps_mean)


@pytest.mark.parametrize("kind", EXACT)
def test_nothing_is_lost_of_a_stream_in_a_subspace(kind, monkeypatch):
    teacher = in_a_subspace(kind, **EXACT[kind])
    before = logits(teacher)
    student = student_from_teacher(teacher, hidden_size=NARROW)
    assert torch.equal(logits(teacher), before)
    error = (logits(student) - before).norm() / before.norm()
    assert error < 1e-3
    monkeypatch.setattr(narrowing, "leading_basis", shuffled_basis)
    assert (logits(student_from_teacher(teacher, hidden_size=NARROW)) - before).norm() / before.norm() > 100 * error


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen3"])
def test_a_tied_head_stays_tied_and_comes_near(kind, monkeypatch):
    teacher = in_a_subspace(kind)
    before = logits(teacher)
    student = student_from_teacher(teacher, hidden_size=NARROW)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    error = (logits(student) - before).norm() / before.norm()
    monkeypatch.setattr(narrowing, "leading_basis", shuffled_basis)
    assert error < 0.5 * (logits(student_from_teacher(teacher, hidden_size=NARROW)) - before).norm() / before.norm()


def test_a_masked_language_model_stays_tied():
    student = student_from_teacher(in_a_subspace("roberta"), hidden_size=NARROW)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert logits(student).isfinite().all()


@torch.no_grad()
def test_a_head_without_bias_takes_what_it_can_of_the_last_norms():
    teacher = in_a_subspace("gpt2", tie_word_embeddings=False)
    before = logits(teacher)
    teacher.transformer.ln_f.bias += torch.linspace(-1, 1, WIDE)
    student = student_from_teacher(teacher, hidden_size=NARROW)
    added = (logits(teacher) - before)[0, 0].double().numpy()
    judge = np.linalg.lstsq(student.lm_head.weight.double().numpy(), added)[0]
    np.testing.assert_allclose(student.transformer.ln_f.bias.numpy(), judge, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keeps_mean", [True, False])
def test_the_basis_is_orthonormal_and_holds_the_most(keeps_mean):
    generator = torch.Generator().manual_seed(0)
    tables, matrices = [torch.randn(30, 10, generator=generator)], [torch.randn(10, 7, generator=generator)]
    basis = leading_basis(tables, matrices, 4, keeps_mean=keeps_mean)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), rtol=0, atol=1e-5)
    stacked = torch.cat([tables[0].T / math.sqrt(30), matrices[0]], dim=1)
    if keeps_mean:
        torch.testing.assert_close(basis.T @ torch.ones(10) / math.sqrt(10), torch.ones(4) / 2)
        stacked = stacked - stacked.mean(0)
    singular = torch.linalg.svdvals(stacked)
    held = (basis.T @ stacked).square().sum()
    torch.testing.assert_close(held, singular[: 3 if keeps_mean else 4].square().sum())


@pytest.mark.parametrize("removes_mean", [True, False])
def test_a_norm_that_is_kept_has_the_scaling_that_fits_best(removes_mean):
    generator = torch.Generator().manual_seed(0)
    state = {"norm.weight": torch.randn(10, generator=generator)}
    if removes_mean:
        state["norm.bias"] = torch.randn(10, generator=generator)
    weights = Weights(state, transposed_below=None)
    weights.basis = leading_basis([], [torch.randn(10, 30, generator=generator)], 4, keeps_mean=removes_mean)
    weights.keep_norm("norm")
    basis = weights.basis.numpy()
    inputs = np.eye(4) - (1 / 4 if removes_mean else 0)  # as much in every direction, but for the mean
    wanted = inputs @ basis.T * state["norm.weight"].numpy() @ basis * math.sqrt(10 / 4)
    judge = [np.linalg.lstsq(inputs[:, [one]], wanted[:, one])[0][0] for one in range(4)]
    np.testing.assert_allclose(weights.state["norm.weight"].numpy(), judge, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "vit", "gpt2", "llama"])
def test_fewer_neurons_are_those_that_write_most(kind):
    teacher = in_a_subspace(kind)
    family = family_of(teacher.config)
    with torch.no_grad():  # all but ten are silent
        for layer in stack_of(teacher):
            module = layer.get_submodule(family.neurons_out)
            (module.weight if family.is_transposed else module.weight.T)[5:-5] = 0
    student = student_from_teacher(teacher, 3, hidden_size=NARROW, intermediate_size=10)
    assert getattr(student.config, family.intermediate) == 10
    torch.testing.assert_close(logits(student), logits(student_from_teacher(teacher, 3, hidden_size=NARROW)))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit"])
def test_a_narrow_student_survives_a_folder(kind, tmp_path):
    student = student_from_teacher(in_a_subspace(kind), [0, 5], hidden_size=NARROW)
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(type(student).from_pretrained(tmp_path)), logits(student))


@pytest.mark.parametrize(
    "name",
    [
        "BertModel",
        "BertForTokenClassification",
        "BertForMaskedLM",
        "GPT2Model",
        "ViTModel",
        "OPTForSequenceClassification",
    ],
)
def test_other_heads(name):
    kind = next(kind for kind in ("bert", "gpt2", "vit", "opt") if name.lower().startswith(kind))
    teacher = getattr(transformers, name)(build(kind).config)
    student = student_from_teacher(teacher, 2, hidden_size=NARROW)
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)} if kind == "vit" else {"input_ids": torch.randint(3, 40, (2, 5))}
    assert student(**inputs)[0].isfinite().all()


def test_a_real_narrow_student_is_nearer_than_a_random_slice(monkeypatch):
    teacher = AutoModelForSequenceClassification.from_pretrained(minilm()).eval()
    ids = torch.randint(1000, 20_000, (4, 12), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def similarities(model):  # which sentences are alike, to a network of any width
        states = model.base_model(input_ids=ids).last_hidden_state.mean(1)
        return torch.corrcoef(states).flatten()

    before = similarities(teacher)
    near = student_from_teacher(teacher, hidden_size=352)
    assert near.config.num_attention_heads == 11
    error = (similarities(near) - before).norm()
    monkeypatch.setattr(narrowing, "leading_basis", shuffled_basis)
    assert error < (similarities(student_from_teacher(teacher, hidden_size=352)) - before).norm()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("bert", {"hidden_size": 16}, "hidden_size=16: expected a number from 2 below the teacher's 16"),
        ("bert", {"hidden_size": 0}, "hidden_size=0: expected a number"),
        ("bert", {"hidden_size": 12}, "hidden_size=12: attention heads of 8 .* must be a multiple of 8"),
        ("bert", {"intermediate_size": 8}, "hidden_size=None: expected a number"),
        ("bert", {"hidden_size": 8, "intermediate_size": 25}, "intermediate_size=25: expected 1 to the teacher's 24"),
        ("electra", {"hidden_size": 8}, "at the width of its embeddings 'electra' has no layer that projects"),
        (
            "gemma3_text",
            {"hidden_size": 8},
            "how a 'gemma3_text' model reads and writes .* is not known; it is for bert",
        ),
    ],
)
def test_widths_that_cannot_be(kind, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        student_from_teacher(build(kind), 2, **arguments)


def test_models_that_are_built_otherwise():
    with pytest.raises(ConfigurationError, match="a 'opt' model of this kind"):
        student_from_teacher(build("opt", do_layer_norm_before=False), 2, hidden_size=8)
    pretraining = transformers.BertForPreTraining(build("bert").config)
    with pytest.raises(
        ConfigurationError, match=r"bert\.pooler\.dense, cls\.predictions\.transform\.dense, and which reads"
    ):
        student_from_teacher(pretraining, 2, hidden_size=8)
