"""Which losses are a mean over samples, so that ranks with a share each learn as one process with all does."""

import pytest
import torch

from lightning_compress.distillation.losses import DIST, RKD, Contrastive, Correlation, SimilarityPreserving
from tests.distillation.judges import numbers, shown
from tests.distillation.test_losses import EVERY, LABELS, Student, Teacher

ACROSS = (DIST, RKD, SimilarityPreserving, Correlation)  # as docs/distillation.md says


@pytest.mark.parametrize("loss", EVERY, ids=repr)
def test_all_but_relations_are_the_mean_of_their_halves(loss):
    torch.manual_seed(1)
    student, teacher, images = Student(), Teacher(), numbers(4, 2, 4, 4)
    learned = loss.learned(*shown(loss, student, teacher, images=images))
    if isinstance(loss, Contrastive):  # a mean, given what is in its bank
        loss(*shown(loss, student, teacher, images=numbers(8, 2, 4, 4, seed=5)), learned)
        learned.eval()

    def term(part):
        return loss(*shown(loss, student, teacher, labels=LABELS[part], images=images[part]), learned).item()

    halves = (term(slice(2)) + term(slice(2, 4))) / 2
    is_mean = halves == pytest.approx(term(slice(4)), rel=1e-4)
    assert is_mean != isinstance(loss, ACROSS)
