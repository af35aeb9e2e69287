import math

import numpy as np
import pytest
import torch

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional import (
    decoupled,
    dist,
    logit_mse,
    soft_targets,
    standardized_logits,
)
from tests.distillation.judges import assert_only_the_student_learns, close, kl, numbers, softmax

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
FORMULAS = {
    "soft_targets": lambda s, t: soft_targets(s, t, temperature=3.0),
    "standardized_logits": lambda s, t: standardized_logits(s, t, temperature=3.0),
    "logit_mse": logit_mse,
    "decoupled": lambda s, t: decoupled(s, t, LABELS[: len(s)], temperature=3.0, alpha=1.0, beta=8.0),
    "dist": lambda s, t: dist(s, t, temperature=3.0, inter=1.0, intra=2.0),
}


@pytest.fixture
def logits():
    return 3.0 * numbers(6, 5), 3.0 * numbers(6, 5, seed=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (5,)])
def test_soft_targets_is_the_mean_divergence_of_softened_answers(shape, temperature):
    student, teacher = numbers(*shape), numbers(*shape, seed=1)
    expected = kl(softmax(teacher / temperature), softmax(student / temperature)).mean() * temperature**2
    close(soft_targets(student, teacher, temperature=temperature), expected)


def test_the_gradient_of_soft_targets_keeps_its_size_when_the_temperature_is_high():
    # Hinton et al. 2015, equation 4: it tends to the gradient of half the squared difference of centred logits.
    student, teacher = numbers(6, 5).requires_grad_(), numbers(6, 5, seed=1)
    soft_targets(student, teacher, temperature=1000.0).backward()
    difference = (student - teacher).detach().numpy()
    close(student.grad, (difference - difference.mean(axis=1, keepdims=True)) / 5 / 6, tolerance=1e-3)


def test_standardized_logits_are_z_scores(logits):
    student, teacher = logits

    def z_scores(rows):
        rows = rows.numpy().astype(np.float64)
        return (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)

    expected = kl(softmax(z_scores(teacher) / 2.0), softmax(z_scores(student) / 2.0)).mean() * 4.0
    close(standardized_logits(student, teacher, temperature=2.0), expected)
    # Neither network's scale matters, row by row.
    scaled = 5.0 + student * torch.tensor([[0.5], [2.0], [1.0], [7.0], [3.0], [0.1]])
    close(standardized_logits(scaled, 0.3 * teacher, temperature=2.0), expected, tolerance=1e-4)


def test_standardized_logits_of_a_head_that_starts_at_zero_have_a_small_gradient():
    student = torch.zeros(4, 5, requires_grad=True)
    standardized_logits(student, numbers(4, 5), temperature=1.0).backward()
    assert 0.0 < student.grad.abs().max() < 1.0


def test_two_standardized_logits_say_nothing_and_are_refused():
    with pytest.raises(ConfigurationError, match=r"at least 3 classes, and there are 2"):
        standardized_logits(numbers(4, 2), numbers(4, 2), temperature=1.0)


def test_logit_mse_is_the_mean_squared_difference(logits):
    student, teacher = logits
    close(logit_mse(student, teacher), ((student.numpy() - teacher.numpy()) ** 2).mean())


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (1.5, 8.0)])
def test_decoupled_takes_the_labelled_class_and_the_others_apart(logits, alpha, beta):
    student, teacher = logits
    losses = []
    for own, other, label in zip(student.numpy(), teacher.numpy(), LABELS.tolist(), strict=True):
        q, p = softmax(own / 2.0), softmax(other / 2.0)
        target = kl(np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]]))
        rest = kl(np.delete(p, label) / (1 - p[label]), np.delete(q, label) / (1 - q[label]))
        losses.append(alpha * target + beta * rest)
    found = decoupled(student, teacher, LABELS, temperature=2.0, alpha=alpha, beta=beta)
    close(found, np.mean(losses) * 4.0)


def test_decoupled_parts_add_up_to_soft_targets():
    # Zhao et al. 2022: KD = TCKD + (1 - p of the labelled class) NCKD, with the teacher's p.
    student, teacher = numbers(1, 5), numbers(1, 5, seed=1)
    others = 1.0 - softmax(teacher)[0, 3]
    whole = decoupled(student, teacher, torch.tensor([3]), temperature=1.0, alpha=1.0, beta=others)
    close(whole, soft_targets(student, teacher, temperature=1.0).item())


def test_decoupled_leaves_out_what_has_no_label(logits):
    student, teacher = logits
    labels = LABELS.clone()
    labels[[1, 4]] = -100
    kept = [0, 2, 3, 5]
    expected = decoupled(student[kept], teacher[kept], LABELS[kept], temperature=2.0, alpha=1.0, beta=8.0)
    close(decoupled(student, teacher, labels, temperature=2.0, alpha=1.0, beta=8.0), expected.item())
    assert decoupled(student, teacher, torch.full((6,), -100), temperature=2.0, alpha=1.0, beta=8.0) == 0.0


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (torch.zeros(6), r"torch.float32 of shape \[6\]"),
        (torch.zeros(5, dtype=torch.long), r"torch.int64 of shape \[5\]"),
        (torch.zeros(6, 5), r"torch.float32 of shape \[6, 5\]"),
    ],
)
def test_decoupled_refuses_labels_that_are_no_classes(logits, labels, shown):
    with pytest.raises(ConfigurationError, match=shown + r".*expected class indices of shape \[6\]"):
        decoupled(*logits, labels, temperature=2.0, alpha=1.0, beta=8.0)


@pytest.mark.parametrize(("inter", "intra"), [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_dist_is_one_minus_correlations(logits, inter, intra):
    student, teacher = logits
    q, p = softmax(student / 2.0), softmax(teacher / 2.0)
    over_classes = np.mean([1 - np.corrcoef(own, other)[0, 1] for own, other in zip(q, p, strict=True)])
    over_samples = np.mean([1 - np.corrcoef(own, other)[0, 1] for own, other in zip(q.T, p.T, strict=True)])
    expected = (inter * over_classes + intra * over_samples) * 4.0
    close(dist(student, teacher, temperature=2.0, inter=inter, intra=intra), expected)


def test_dist_sees_classes_that_are_rare():
    student, teacher = 3.0 * numbers(6, 5), 3.0 * numbers(6, 5, seed=1)
    student[:, 2] -= 20.0
    teacher[:, 2] -= 20.0
    q, p = softmax(student), softmax(teacher)
    expected = np.mean([1 - np.corrcoef(own, other)[0, 1] for own, other in zip(q.T, p.T, strict=True)])
    close(dist(student, teacher, temperature=1.0, inter=0.0, intra=1.0), expected, tolerance=1e-4)


def test_dist_of_a_single_sample_and_of_equal_probabilities_stays_finite():
    one, other = numbers(1, 5).requires_grad_(), numbers(1, 5, seed=1)
    alone = dist(one, other, temperature=1.0, inter=1.0, intra=1.0)
    close(alone, dist(one, other, temperature=1.0, inter=1.0, intra=0.0).item())
    flat = torch.zeros(4, 5, requires_grad=True)
    loss = dist(flat, numbers(4, 5), temperature=1.0, inter=1.0, intra=1.0)
    loss.backward()
    assert loss == 2.0  # not correlated
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_only_the_student_learns_and_it_has_learned_when_both_agree(name, logits):
    student, teacher = logits
    assert_only_the_student_learns(FORMULAS[name], student, teacher)
    assert FORMULAS[name](student, teacher) > 0.01
    close(FORMULAS[name](teacher, teacher), 0.0)
    assert torch.equal(FORMULAS[name](teacher, teacher), FORMULAS[name](teacher.clone(), teacher))


@pytest.mark.parametrize("name", sorted(set(FORMULAS) - {"decoupled"}))
def test_the_order_of_samples_and_of_classes_does_not_matter(name, logits):
    student, teacher = logits
    expected = FORMULAS[name](student, teacher).item()
    samples, classes = torch.randperm(6), torch.randperm(5)
    close(FORMULAS[name](student[samples], teacher[samples]), expected)
    close(FORMULAS[name](student[:, classes], teacher[:, classes]), expected)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_batch_of_nothing_counts_nothing(name):
    empty = torch.zeros(0, 5, requires_grad=True)
    loss = FORMULAS[name](empty, torch.zeros(0, 5))
    assert loss == 0.0
    loss.backward()


@pytest.mark.parametrize("name", FORMULAS)
def test_class_counts_and_shapes_that_differ_are_refused(name, logits):
    student, teacher = logits
    with pytest.raises(
        ConfigurationError, match=r"student's logits have 5 classes and the teacher's 4: expected the same"
    ):
        FORMULAS[name](student, teacher[:, :4])
    with pytest.raises(ConfigurationError, match=r"shape \[6, 5\] and the teacher's \[3, 5\]: expected the same"):
        FORMULAS[name](student, teacher[:3])


def test_large_logits_do_not_overflow():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = soft_targets(student, torch.tensor([[-1e4, 1e4, 0.0]]), temperature=1.0)
    loss.backward()
    assert math.isclose(loss.item(), 2e4)
    assert torch.isfinite(student.grad).all()
