import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import iv

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional import (
    contrastive,
    correlation,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from lightning_compress.distillation.functional.relations import _score_of_strangers
from tests.distillation.judges import assert_only_the_student_learns, close, numbers

FORMULAS = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "similarity_preserving": similarity_preserving,
    "gaussian": lambda s, t: correlation(s, t, kernel="gaussian", gamma=0.4, order=2),
    "bilinear": lambda s, t: correlation(s, t, kernel="bilinear", gamma=0.4, order=2),
}


@pytest.fixture
def samples():
    return numbers(5, 3), numbers(5, 7, seed=1)


def length_one(vector):
    return vector / np.linalg.norm(vector)


def huber(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def test_rkd_distance_compares_distances_in_units_of_their_mean(samples):
    distances = []
    for rows in samples:
        every = np.array([np.linalg.norm(one - other) for one, other in itertools.combinations(rows.numpy(), 2)])
        distances.append(every / every.mean())
    expected = np.mean([huber(own - other) for own, other in zip(*distances, strict=True)])
    close(rkd_distance(*samples), expected)


def test_rkd_distance_grows_only_linearly_far_away():
    student, teacher = torch.tensor([[0.0], [0.0], [0.0], [9.0]]), torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    found = [np.abs(np.subtract.outer(rows[:, 0], rows[:, 0]))[np.triu_indices(4, 1)] for rows in (student, teacher)]
    scaled = [every / every.mean() for every in found]
    assert np.abs(scaled[0] - scaled[1]).max() > 1.0
    close(rkd_distance(student, teacher), np.mean([huber(own - other) for own, other in zip(*scaled, strict=True)]))


def test_rkd_angle_compares_every_corner_of_every_triangle(samples):
    losses = []
    for end, corner, other_end in itertools.permutations(range(5), 3):
        own, other = (
            length_one(rows[end].numpy() - rows[corner].numpy())
            @ length_one(rows[other_end].numpy() - rows[corner].numpy())
            for rows in samples
        )
        losses.append(huber(own - other))
    close(rkd_angle(*samples), np.mean(losses))


def test_similarity_preserving_compares_scaled_rows_of_products(samples):
    own, other = (np.stack([length_one(row) for row in rows.numpy() @ rows.numpy().T]) for rows in samples)
    close(similarity_preserving(*samples), ((own - other) ** 2).sum() / 5**2)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_correlation_is_a_series_of_powers_of_the_cosine(samples, order):
    gamma = 0.7
    kernels = []
    for rows in samples:
        units = np.stack([length_one(row) for row in rows.numpy()])
        terms = [
            (2 * gamma) ** power / math.factorial(power) * (units @ units.T) ** power for power in range(order + 1)
        ]
        kernels.append(math.exp(-2 * gamma) * np.sum(terms, axis=0))
    found = correlation(*samples, kernel="gaussian", gamma=gamma, order=order)
    close(found, ((kernels[0] - kernels[1]) ** 2).mean())


def test_correlation_tends_to_the_gaussian_kernel_of_samples_of_length_one(samples):
    gaussians = []
    for rows in samples:
        units = np.stack([length_one(row) for row in rows.numpy()])
        gaussians.append(np.exp(-0.4 * ((units[:, None] - units[None]) ** 2).sum(axis=-1)))
    found = correlation(*samples, kernel="gaussian", gamma=0.4, order=12)
    close(found, ((gaussians[0] - gaussians[1]) ** 2).mean())


def test_bilinear_correlation_is_the_cosine(samples):
    cosines = []
    for rows in samples:
        units = np.stack([length_one(row) for row in rows.numpy()])
        cosines.append(units @ units.T)
    close(correlation(*samples, kernel="bilinear", gamma=1.0, order=1), ((cosines[0] - cosines[1]) ** 2).mean())


@pytest.mark.parametrize("name", FORMULAS)
def test_neither_scale_nor_rotation_nor_order_matters(name, samples):
    student, teacher = samples
    expected = FORMULAS[name](student, teacher).item()
    rotation, order = torch.linalg.qr(numbers(3, 3)).Q, torch.randperm(5)
    close(FORMULAS[name](4.0 * student @ rotation, 0.1 * teacher), expected)
    close(FORMULAS[name](student[order], teacher[order]), expected)
    close(FORMULAS[name](student.view(5, 1, 3), teacher.view(5, 7, 1)), expected)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_rkd_does_not_care_where_the_samples_lie(name, samples):
    student, teacher = samples
    close(FORMULAS[name](student + 3.0, teacher), FORMULAS[name](student, teacher).item(), tolerance=1e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_only_the_student_learns_and_it_has_learned_when_both_agree(name, samples):
    assert_only_the_student_learns(FORMULAS[name], *samples)
    assert FORMULAS[name](*samples) > 0.001
    close(FORMULAS[name](samples[1], samples[1]), 0.0)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("batch", [1, 2])
def test_small_batches_have_few_relations_or_none(name, batch):
    student = numbers(batch, 3).requires_grad_()
    loss = FORMULAS[name](student, numbers(batch, 4, seed=1))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    if batch == 1 or name == "rkd_angle":
        close(loss, 0.0)


@pytest.mark.parametrize("name", FORMULAS)
def test_samples_that_are_equal_or_zero_leave_gradients_small(name):
    student = numbers(5, 3)
    student[1] = student[0]
    student[2] = 0.0
    for rows in (student, torch.ones(5, 3)):
        leaf = rows.clone().requires_grad_()
        loss = FORMULAS[name](leaf, numbers(5, 4, seed=1))
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() < 10.0


@pytest.mark.parametrize("name", FORMULAS)
def test_batches_that_differ_are_refused(name, samples):
    with pytest.raises(
        ConfigurationError, match=r"\[5, 3\] and the teacher's \[4, 7\]: expected the same number of samples"
    ):
        FORMULAS[name](samples[0], samples[1][:4])


def unit_rows(*shape, seed):
    rows = numbers(*shape, seed=seed)
    return rows / rows.norm(dim=-1, keepdim=True)


def score_of_strangers(size, temperature):
    """Mean of exp(cosine / temperature) over the sphere, in closed form (von Mises-Fisher)."""
    order = size / 2 - 1
    return math.gamma(size / 2) * (2 * temperature) ** order * iv(order, 1 / temperature)


@pytest.mark.parametrize(("size", "temperature"), [(2, 1.0), (3, 0.1), (6, 0.07), (128, 0.07), (128, 0.5)])
def test_the_score_of_strangers_is_that_of_random_directions(size, temperature):
    found = math.exp(_score_of_strangers(size, temperature))
    assert math.isclose(found, score_of_strangers(size, temperature), rel_tol=1e-5)
    directions = unit_rows(4000, size, seed=0)
    random = (directions[:2000] @ directions[2000:].T / max(temperature, 0.5)).exp().mean().item()
    assert math.isclose(random, score_of_strangers(size, max(temperature, 0.5)), rel_tol=0.02)


def by_loops(embeddings, counts, *, temperature):
    """Tian et al. 2020 with h = e / (e + N c), in float64."""
    student, teacher, student_bank, teacher_bank = (np.asarray(one, dtype=np.float64) for one in embeddings)
    total = 0.0
    for anchors, positives, bank in ((student, teacher, teacher_bank), (teacher, student, student_bank)):
        score = np.exp(anchors @ bank.T / temperature)
        for place, (anchor, positive) in enumerate(zip(anchors, positives, strict=True)):
            noise = counts[place].sum() * score_of_strangers(6, temperature)
            same = np.exp(anchor @ positive / temperature)
            total -= np.log(same / (same + noise))
            for other in np.flatnonzero(counts[place]):
                total -= np.log(1.0 - score[place, other] / (score[place, other] + noise))
    return total / len(student)


@pytest.fixture
def embeddings():
    return [unit_rows(*shape, seed=seed) for seed, shape in enumerate([(4, 6), (4, 6), (9, 6), (9, 6)])]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_contrastive_is_noise_contrastive_estimation(embeddings, temperature):
    expected = by_loops(embeddings, np.ones((4, 9), dtype=bool), temperature=temperature)
    close(contrastive(*embeddings, None, temperature=temperature), expected)
    longer = [2.0 * embeddings[0], 0.5 * embeddings[1], *embeddings[2:]]
    close(contrastive(*longer, None, temperature=temperature), expected)


def test_contrastive_looks_only_at_what_counts(embeddings):
    counts = torch.ones(4, 9, dtype=torch.bool)
    counts[:, 6:] = False
    counts[1, 2] = counts[3, 0] = False
    student, teacher, student_bank, teacher_bank = embeddings
    expected = by_loops(embeddings, counts.numpy(), temperature=0.2)
    close(contrastive(*embeddings, counts, temperature=0.2), expected)
    student_bank[6:], teacher_bank[6:] = 1e3, -1e3
    close(contrastive(student, teacher, student_bank, teacher_bank, counts, temperature=0.2), expected)
    whole = contrastive(student, teacher, student_bank[:6], teacher_bank[:6], counts[:, :6], temperature=0.2)
    close(whole, expected)


def test_contrastive_rewards_the_same_sample_and_punishes_others(embeddings):
    student, teacher, student_bank, teacher_bank = embeddings
    apart = contrastive(student, teacher, student_bank, teacher_bank, None, temperature=0.1)
    assert contrastive(teacher, teacher, student_bank, teacher_bank, None, temperature=0.1) < apart
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    contrastive(student, teacher, student_bank, teacher_bank, None, temperature=0.1).backward()
    for leaf in (student, teacher):  # the teacher's embedding is learned
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


def test_contrastive_with_nothing_to_tell_apart_is_zero(embeddings):
    student, teacher = embeddings[0].requires_grad_(), embeddings[1].requires_grad_()
    for bank, counts in ((embeddings[2], torch.zeros(4, 9, dtype=torch.bool)), (torch.zeros(0, 6), None)):
        loss = contrastive(student, teacher, bank, bank, counts, temperature=0.07)
        loss.backward()
        assert loss == 0.0
        assert student.grad.abs().max() == 0.0
        assert teacher.grad.abs().max() == 0.0


def test_contrastive_refuses_embeddings_of_different_size(embeddings):
    student, teacher, student_bank, teacher_bank = embeddings
    with pytest.raises(ConfigurationError, match=r"shapes \[4, 6\] and \[4, 5\].*expected the same of both"):
        contrastive(student, teacher[:, :5], student_bank, teacher_bank, None, temperature=0.1)
    with pytest.raises(ConfigurationError, match=r"\[9, 6\] and \[8, 6\]: expected the same of both"):
        contrastive(student, teacher, student_bank, teacher_bank[:8], None, temperature=0.1)
