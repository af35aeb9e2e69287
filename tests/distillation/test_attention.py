import math

import numpy as np
import pytest
import torch

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional import (
    attention_maps,
    attention_scores,
    minilm_relations,
    split_heads,
)
from tests.distillation.judges import assert_only_the_student_learns, close, kl, numbers, softmax

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)


def test_heads_are_cut_side_by_side():
    projections = numbers(3, 4, 12)
    heads = split_heads(projections, heads=3)
    for head in range(3):
        assert torch.equal(heads[:, head], projections[:, :, 4 * head : 4 * head + 4])


@pytest.mark.parametrize(("queries", "shared"), [(4, 4), (4, 2), (4, 1)])
def test_scores_are_scaled_products_and_keys_may_serve_several_queries(queries, shared):
    q, k = numbers(2, queries, 3, 5), numbers(2, shared, 3, 5, seed=1)
    expected = np.empty((2, queries, 3, 3))
    for sample in range(2):
        for head in range(queries):
            key = k[sample, head // (queries // shared)].numpy()
            expected[sample, head] = q[sample, head].numpy() @ key.T / math.sqrt(5)
    close(attention_scores(q, k), expected)


def test_scores_are_those_of_torch_with_grouped_queries():
    q, k, v = numbers(2, 4, 3, 5), numbers(2, 2, 3, 5, seed=1), numbers(2, 2, 3, 5, seed=2)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    close(attention_scores(q, k).softmax(dim=-1) @ v.repeat_interleave(2, dim=1), attended.numpy())


def pairs_that_count(sample, *, masked, causal):
    return [
        (own, other)
        for own in range(4)
        for other in range(4)
        if (not masked or (MASK[sample, own] and MASK[sample, other])) and (not causal or other <= own)
    ]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_maps_are_compared_head_by_head_between_tokens_that_count(masked, causal):
    student, teacher = numbers(3, 2, 4, 4), numbers(3, 2, 4, 4, seed=1)
    squares = [
        (student[sample, head, own, other] - teacher[sample, head, own, other]).item() ** 2
        for sample in range(3)
        for head in range(2)
        for own, other in pairs_that_count(sample, masked=masked, causal=causal)
    ]
    close(attention_maps(student, teacher, MASK if masked else None, causal=causal), np.mean(squares))


def test_different_numbers_of_heads_compare_their_means():
    student, teacher = numbers(3, 2, 4, 4), numbers(3, 3, 4, 4, seed=1)
    means = student.numpy().mean(axis=1, keepdims=True), teacher.numpy().mean(axis=1, keepdims=True)
    expected = attention_maps(*(torch.from_numpy(mean) for mean in means), MASK, causal=False).item()
    close(attention_maps(student, teacher, MASK, causal=False), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_minilm_relations_are_divergences_of_softmaxed_products(heads, masked):
    student, teacher = numbers(3, 4, 8), numbers(3, 4, 12, seed=1)
    losses = []
    for sample in range(3):
        kept = MASK[sample].numpy() if masked else np.ones(4, dtype=bool)
        for head in range(heads):
            own, other = (
                one[sample].numpy()[:, head * (size := one.shape[-1] // heads) : (head + 1) * size][kept]
                for one in (student, teacher)
            )
            q, p = (softmax(one @ one.T / math.sqrt(one.shape[-1])) for one in (own, other))
            losses.extend(kl(p, q))
    cut = [split_heads(one, heads=heads) for one in (student, teacher)]
    close(minilm_relations(*cut, MASK if masked else None), np.mean(losses))


def test_minilm_relations_know_no_direction():
    student, teacher = numbers(3, 2, 4, 5), numbers(3, 2, 4, 5, seed=1)
    rotation = torch.linalg.qr(numbers(5, 5)).Q
    close(minilm_relations(student @ rotation, teacher, MASK), minilm_relations(student, teacher, MASK).item())
    close(minilm_relations(teacher @ rotation, teacher, MASK), 0.0)


FORMULAS = {
    "attention_maps": lambda s, t: attention_maps(attention_scores(s, s), attention_scores(t, t), MASK, causal=False),
    "causal": lambda s, t: attention_maps(attention_scores(s, s), attention_scores(t, t), MASK, causal=True),
    "minilm_relations": lambda s, t: minilm_relations(s, t, MASK),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_padding_has_no_influence(name):
    student, teacher = numbers(3, 2, 4, 5), numbers(3, 2, 4, 5, seed=1)
    before = FORMULAS[name](student, teacher)
    padding = (~MASK)[:, None, :, None]
    student, teacher = student.masked_fill(padding, 1e4), teacher.masked_fill(padding, -1e5)
    student.requires_grad_()
    after = FORMULAS[name](student, teacher)
    close(after, before.item(), tolerance=1e-6)
    after.backward()
    assert student.grad.isfinite().all()
    assert student.grad.masked_select(padding).abs().max() == 0.0


@pytest.mark.parametrize("name", FORMULAS)
def test_only_the_student_learns_and_it_has_learned_when_both_agree(name):
    student, teacher = numbers(3, 2, 4, 5), numbers(3, 2, 4, 5, seed=1)
    assert_only_the_student_learns(FORMULAS[name], student, teacher)
    assert FORMULAS[name](student, teacher) > 0.001
    close(FORMULAS[name](teacher, teacher), 0.0, tolerance=1e-6)


def test_a_decoder_is_not_judged_by_what_it_never_looks_at():
    student, teacher = numbers(1, 2, 4, 4), numbers(1, 2, 4, 4, seed=1)
    before = attention_maps(student, teacher, None, causal=True)
    assert torch.equal(attention_maps(student + torch.ones(4, 4).triu(1), teacher, None, causal=True), before)


def test_a_sample_without_tokens_counts_nothing():
    student, teacher = numbers(3, 2, 4, 5).requires_grad_(), numbers(3, 2, 4, 5, seed=1)
    mask = MASK.clone()
    mask[1] = False
    loss = minilm_relations(student, teacher, mask)
    loss.backward()
    close(loss, minilm_relations(student[[0, 2]], teacher[[0, 2]], MASK[[0, 2]]).item())
    assert student.grad.isfinite().all()


def test_shapes_that_cannot_be_matched_are_refused():
    heads = numbers(3, 2, 4, 5)
    with pytest.raises(
        ConfigurationError, match=r"shape \[3, 4, 10\] cannot be cut into heads=4: expected \[batch, tokens"
    ):
        split_heads(numbers(3, 4, 10), heads=4)
    with pytest.raises(ConfigurationError, match=r"shape \[3, 10\] cannot be cut into heads=2"):
        split_heads(numbers(3, 10), heads=2)
    with pytest.raises(ConfigurationError, match=r"Queries of shape \[3, 2, 4, 5\] and keys of shape \[3, 2, 4, 4\]"):
        attention_scores(heads, heads[..., :4])
    with pytest.raises(ConfigurationError, match="a divisor of the queries'"):
        attention_scores(numbers(3, 3, 4, 5), heads)
    with pytest.raises(
        ConfigurationError, match=r"student's attention scores have shape \[3, 2, 4, 4\].*\[3, 2, 3, 3\]"
    ):
        attention_maps(numbers(3, 2, 4, 4), numbers(3, 2, 3, 3), None, causal=False)
    with pytest.raises(ConfigurationError, match=r"mask has shape \[3, 3\]: expected \[3, 4\]"):
        attention_maps(numbers(3, 2, 4, 4), numbers(3, 2, 4, 4), MASK[:, :3], causal=False)
    with pytest.raises(
        ConfigurationError, match=r"\[3, 1, 4, 5\]: expected the same number of samples, relation heads"
    ):
        minilm_relations(heads, heads[:, :1], None)
    with pytest.raises(
        ConfigurationError, match=r"teacher's features have shape \[3, 4, 5\]: expected \[batch, heads, tok"
    ):
        minilm_relations(heads, heads[:, 0], None)
    with pytest.raises(ConfigurationError, match=r"mask has shape \[3, 3\]: expected \[3, 4\]"):
        minilm_relations(heads, heads, MASK[:, :3])
