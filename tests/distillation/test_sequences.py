import numpy as np
import pytest
import torch

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional import generalized_jsd, sequence_targets, soft_targets, word_level
from tests.distillation.judges import assert_only_the_student_learns, close, kl, log_softmax, numbers, softmax

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


@pytest.fixture
def logits():
    return 2.0 * numbers(3, 4, 7), 2.0 * numbers(3, 4, 7, seed=1)


def divergence(own, other, beta):
    q, p = softmax(own), softmax(other)
    if beta in {0.0, 1.0}:
        return kl(p, q) if beta == 0.0 else kl(q, p)
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mask", [MASK, MASK.long(), None], ids=["booleans", "integers", "none"])
def test_generalized_jsd_is_the_mean_over_tokens_that_count(logits, mask, beta, temperature):
    student, teacher = logits
    losses = [
        divergence(student[sample, token] / temperature, teacher[sample, token] / temperature, beta)
        for sample in range(3)
        for token in range(4)
        if mask is None or mask[sample, token]
    ]
    found = generalized_jsd(student, teacher, mask, beta=beta, temperature=temperature)
    close(found, np.mean(losses) * temperature**2)


@pytest.mark.parametrize(("beta", "end"), [(1e-4, 0.0), (1 - 1e-4, 1.0)])
def test_its_ends_are_the_limits_after_division(logits, beta, end):
    student, teacher = (one.double() for one in logits)
    inside = divergence(student[0, 0], teacher[0, 0], beta) / min(beta, 1 - beta)
    close(generalized_jsd(student[:1, :1], teacher[:1, :1], None, beta=end, temperature=1.0), inside, tolerance=1e-2)


def test_half_way_it_is_symmetric(logits):
    one, other = logits
    forth, back = (generalized_jsd(*both, MASK, beta=0.5, temperature=1.0) for both in ((one, other), (other, one)))
    close(forth, back.item())


def test_word_level_is_soft_targets_of_the_tokens_that_count(logits):
    student, teacher = logits
    expected = soft_targets(student[MASK], teacher[MASK], temperature=3.0).item()
    close(word_level(student, teacher, MASK, temperature=3.0), expected)


@pytest.mark.parametrize("beta", BETAS)
def test_padding_has_no_influence(logits, beta):
    student, teacher = logits
    before = generalized_jsd(student, teacher, MASK, beta=beta, temperature=2.0)
    student, teacher = student.clone(), teacher.clone()
    student[~MASK], teacher[~MASK] = 100.0 * numbers(5, 7, seed=2), -3e4 * numbers(5, 7, seed=3)
    student.requires_grad_()
    after = generalized_jsd(student, teacher, MASK, beta=beta, temperature=2.0)
    assert torch.equal(before, after)
    after.backward()
    assert student.grad[~MASK].abs().max() == 0.0
    assert student.grad[MASK].abs().min() > 0.0


@pytest.mark.parametrize("beta", BETAS)
def test_only_the_student_learns_and_it_has_learned_when_both_agree(logits, beta):
    student, teacher = logits

    def formula(own, other):
        return generalized_jsd(own, other, MASK, beta=beta, temperature=2.0)

    assert_only_the_student_learns(formula, student, teacher)
    close(formula(teacher, teacher), 0.0)
    assert formula(student, teacher) > 0.01


def test_if_nothing_counts_the_loss_is_zero(logits):
    student = logits[0].clone().requires_grad_()
    loss = word_level(student, logits[1], torch.zeros_like(MASK), temperature=1.0)
    loss.backward()
    assert loss == 0.0
    assert student.grad.abs().max() == 0.0


def test_vocabularies_and_shapes_that_differ_are_refused(logits):
    student, teacher = logits
    with pytest.raises(
        ConfigurationError, match=r"student's logits have 7 classes and the teacher's 6.*same vocabulary"
    ):
        word_level(student, teacher[..., :6], MASK, temperature=1.0)
    with pytest.raises(ConfigurationError, match=r"mask has shape \[3, 3\]: expected \[3, 4\]"):
        word_level(student, teacher, MASK[:, :3], temperature=1.0)
    with pytest.raises(ConfigurationError, match=r"shape \[4, 7\]: expected \[batch, tokens, vocabulary\]"):
        word_level(student[0], teacher[0], MASK, temperature=1.0)


@pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "whole"])
def test_sequence_targets_predict_each_token_from_those_before(logits, mask):
    student = logits[0]
    targets = torch.tensor([[1, 5, 2, 0], [3, 3, 6, 4], [2, 1, 0, 6]])
    losses = [
        -log_softmax(student[sample, token - 1])[targets[sample, token]]
        for sample in range(3)
        for token in range(1, 4)
        if mask is None or mask[sample, token]
    ]
    close(sequence_targets(student, targets, mask), np.mean(losses))
    if mask is not None:
        padded = targets.masked_fill(~mask, -1)
        close(sequence_targets(student, padded, mask), np.mean(losses))


def test_sequence_targets_never_use_the_last_prediction(logits):
    student = logits[0].clone().requires_grad_()
    sequence_targets(student, torch.zeros(3, 4, dtype=torch.long), None).backward()
    assert student.grad[:, -1].abs().max() == 0.0
    assert student.grad[:, :-1].abs().min() > 0.0


def test_sequence_targets_refuse_what_does_not_fit(logits):
    with pytest.raises(
        ConfigurationError, match=r"torch.float32 of shape \[3, 4\].*expected token ids of shape \[3, 4\]"
    ):
        sequence_targets(logits[0], torch.zeros(3, 4), None)
    with pytest.raises(ConfigurationError, match=r"of shape \[3, 3\]"):
        sequence_targets(logits[0], torch.zeros(3, 3, dtype=torch.long), None)
    with pytest.raises(ConfigurationError, match=r"expected \[batch, tokens, vocabulary\]"):
        sequence_targets(logits[0][0], torch.zeros(4, dtype=torch.long), None)
