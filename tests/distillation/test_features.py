import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional import (
    attention_transfer,
    cosine,
    flow,
    hidden_states,
    hint,
    neuron_selectivity,
)
from tests.distillation.judges import assert_only_the_student_learns, close, numbers

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
COUNTED = [(sample, token) for sample in range(3) for token in range(4) if MASK[sample, token]]


def length_one(vector):
    return vector / np.linalg.norm(vector)


def test_hint_is_the_mean_squared_difference():
    student, teacher = numbers(3, 4, 5), numbers(3, 4, 5, seed=1)
    close(hint(student, teacher), ((student.numpy() - teacher.numpy()) ** 2).mean())


@pytest.mark.parametrize("formula", [hint, attention_transfer, neuron_selectivity])
def test_larger_maps_are_averaged_down_to_the_smaller_ones_size(formula):
    small, large = numbers(3, 6, 2, 3), numbers(3, 6, 4, 9, seed=1)
    blocks = large.numpy().reshape(3, 6, 2, 2, 3, 3).mean(axis=(3, 5))
    close(formula(small, large), formula(small, torch.from_numpy(blocks)).item())
    close(formula(large, small), formula(torch.from_numpy(blocks), small).item())


def test_hidden_states_differ_by_the_mean_over_tokens_that_count():
    student, teacher = numbers(3, 4, 5), numbers(3, 4, 5, seed=1)
    every = [((student[place].numpy() - teacher[place].numpy()) ** 2).mean() for place in COUNTED]
    close(hidden_states(student, teacher, MASK), np.mean(every))
    close(hidden_states(student, teacher, None), ((student.numpy() - teacher.numpy()) ** 2).mean())


def test_cosine_is_of_tokens_that_count():
    student, teacher = numbers(3, 4, 5), numbers(3, 4, 5, seed=1)
    every = [1 - length_one(student[place].numpy()) @ length_one(teacher[place].numpy()) for place in COUNTED]
    close(cosine(student, teacher, MASK), np.mean(every))
    close(cosine(7.0 * student, 0.1 * teacher, MASK), np.mean(every))
    close(cosine(student, -student, MASK), 2.0)


@pytest.mark.parametrize("formula", [hidden_states, cosine])
def test_padding_has_no_influence(formula):
    student, teacher = numbers(3, 4, 5), numbers(3, 4, 5, seed=1)
    before = formula(student, teacher, MASK)
    student[~MASK], teacher[~MASK] = 1e6, float("inf")
    assert torch.equal(formula(student, teacher, MASK), before)
    teacher[~MASK] = -1e6
    student.requires_grad_()
    formula(student, teacher, MASK).backward()
    assert student.grad[~MASK].abs().max() == 0.0
    assert student.grad[MASK].abs().max() > 0.0
    assert formula(student, teacher, torch.zeros_like(MASK)) == 0.0


def test_attention_transfer_compares_where_the_squares_are_large():
    student, teacher = numbers(3, 4, 2, 5), numbers(3, 7, 2, 5, seed=1)
    squares = []
    for own, other in zip(student.numpy(), teacher.numpy(), strict=True):
        q, p = (length_one((maps**2).mean(axis=0).ravel()) for maps in (own, other))
        squares.append(((q - p) ** 2).mean())
    close(attention_transfer(student, teacher), np.mean(squares))
    close(attention_transfer(-3.0 * student, teacher[:, torch.randperm(7)]), np.mean(squares))


def test_flow_is_products_of_channels_averaged_over_places():
    student = numbers(3, 4, 4, 6), numbers(3, 5, 2, 3, seed=1)
    teacher = numbers(3, 4, 3, 3, seed=2), numbers(3, 5, 3, 3, seed=3)

    def flows(earlier, later):
        return np.stack(
            [np.einsum("ihw,jhw->ij", *both) / later[0, 0].size for both in zip(earlier, later, strict=True)]
        )

    pooled = student[0].numpy().reshape(3, 4, 2, 2, 3, 2).mean(axis=(3, 5))
    difference = flows(pooled, student[1].numpy()) - flows(teacher[0].numpy(), teacher[1].numpy())
    close(flow(student, teacher), (difference**2).mean())


def test_neuron_selectivity_is_the_discrepancy_of_two_sets_of_maps():
    student, teacher = numbers(3, 4, 2, 3), numbers(3, 7, 2, 3, seed=1)
    discrepancies = []
    for own, other in zip(student.numpy(), teacher.numpy(), strict=True):
        q, p = ([length_one(maps.ravel()) for maps in one] for one in (own, other))

        def mean_kernel(ones, others):
            return np.mean([(one @ another) ** 2 for one in ones for another in others])

        discrepancies.append(mean_kernel(q, q) + mean_kernel(p, p) - 2 * mean_kernel(q, p))
    close(neuron_selectivity(student, teacher), np.mean(discrepancies))
    scaled = student * torch.tensor([1.0, 2.0, 5.0, 0.1])[:, None, None]
    close(neuron_selectivity(scaled[:, torch.randperm(4)], teacher), np.mean(discrepancies))


def test_channels_that_are_dead_leave_gradients_finite():
    student = numbers(3, 4, 2, 3)
    student[:, 1] = 0.0
    student[0] = 0.0
    for formula in (attention_transfer, neuron_selectivity, lambda s, t: flow((s, s), (t, t))):
        leaf = student.clone().requires_grad_()
        formula(leaf, numbers(3, 4, 2, 3, seed=1)).backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() < 10.0


FORMULAS = {
    "hint": hint,
    "attention_transfer": attention_transfer,
    "flow": lambda s, t: flow((s[:, :2], s[:, 2:]), (t[:, :2], t[:, 2:])),
    "neuron_selectivity": neuron_selectivity,
    "hidden_states": lambda s, t: hidden_states(s.flatten(2), t.flatten(2), None),
    "cosine": lambda s, t: cosine(s.flatten(2), t.flatten(2), None),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_only_the_student_learns_and_it_has_learned_when_both_agree(name):
    student, teacher = numbers(3, 5, 2, 4), numbers(3, 5, 2, 4, seed=1)
    assert_only_the_student_learns(FORMULAS[name], student, teacher)
    assert FORMULAS[name](student, teacher) > 0.001
    close(FORMULAS[name](teacher, teacher), 0.0, tolerance=1e-6)
    order = torch.randperm(3)
    close(FORMULAS[name](student[order], teacher[order]), FORMULAS[name](student, teacher).item())


def test_shapes_that_cannot_be_matched_are_refused():
    maps, tokens = numbers(3, 5, 2, 4), numbers(3, 4, 5)
    with pytest.raises(
        ConfigurationError, match=r"student's features have shape \[3, 5, 2, 4\] and the teacher's \[3, 4, 2"
    ):
        hint(maps, maps[:, :4])
    with pytest.raises(ConfigurationError, match=r"\[3, 5, 2, 4\] and the teacher's \[2, 5, 2, 4\]: expected the same"):
        hint(maps, maps[:2])
    for formula in (hidden_states, cosine):
        with pytest.raises(ConfigurationError, match=r"student's hidden states have shape \[3, 4, 5\].*\[3, 4, 3\]"):
            formula(tokens, tokens[..., :3], None)
        with pytest.raises(ConfigurationError, match=r"mask has shape \[3, 3\]: expected \[3, 4\], one entry for each"):
            formula(tokens, tokens, MASK[:, :3])
        with pytest.raises(
            ConfigurationError, match=r"teacher's features have shape \[3, 20\]: expected \[batch, tokens"
        ):
            formula(tokens, tokens.flatten(1), None)
    for formula in (attention_transfer, neuron_selectivity, lambda s, t: flow((maps, s), (maps, t))):
        with pytest.raises(
            ConfigurationError, match=r"teacher's features have shape \[3, 4, 5\]: expected \[batch, channels"
        ):
            formula(maps, tokens)
    for formula in (attention_transfer, neuron_selectivity):
        with pytest.raises(ConfigurationError, match="expected the same number of samples"):
            formula(maps, maps[:2])
    with pytest.raises(
        ConfigurationError, match=r"student's flows from layer to layer have shape \[3, 5, 4\].*\[3, 5, 5\]"
    ):
        flow((maps, maps[:, :4]), (maps, maps))


def test_pooling_is_left_out_where_sizes_agree():
    # Bit for bit: an average over one place may round.
    maps, other = numbers(3, 4, 5, 5), numbers(3, 4, 5, 5, seed=1)
    assert torch.equal(hint(maps, other), F.mse_loss(maps, other))
