import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassCalibrationError

from lightning_compress import CompressionError, ConfigurationError
from lightning_compress.measurement.fidelity import AnswerFidelity
from lightning_compress.measurement.fidelity_figures import Flip, Group
from tests.distributed.once import run_in_forks


def answers(count=400, classes=5, seed=0):
    """Logits of two models that are often right, alike but not the same, with targets."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes - 1, (count,), generator=generator)  # the last class is never a target
    dense = torch.randn(count, classes, generator=generator)
    dense[range(count), target] += 1.5
    return dense, dense + 0.7 * torch.randn(count, classes, generator=generator), target


def fidelity(*batches, **options):
    metric = AnswerFidelity(**options)
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def test_every_figure_is_that_of_an_independent_library():
    dense, compressed, target = answers()
    found = fidelity((dense, compressed, target))
    truth, before, after = target.numpy(), dense.argmax(1).numpy(), compressed.argmax(1).numpy()
    p, q = (torch.softmax(one.double(), 1).numpy() for one in (dense, compressed))
    assert found.predictions == 400
    assert found.agreement == pytest.approx((before == after).mean())
    assert found.flips == (before != after).sum() > 20
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert found.broken == ((before == truth) & (after != truth)).sum() > 0
    assert found.mended == ((before != truth) & (after == truth)).sum() > 0
    for model, said, logits in (("dense", before, dense), ("compressed", after, compressed)):
        assert getattr(found.macro_f1, model) == pytest.approx(sk.f1_score(truth, said, average="macro"))
        assert getattr(found.mcc, model) == pytest.approx(sk.matthews_corrcoef(truth, said))
        calibration = MulticlassCalibrationError(5, n_bins=15, norm="l1")(logits.softmax(1), target)
        assert getattr(found.calibration_error, model) == pytest.approx(float(calibration), abs=1e-6)
        recall = sk.recall_score(truth, said, average=None, labels=range(4))
        assert {int(group.name): getattr(group, model) for group in found.classes} == pytest.approx(
            dict(enumerate(recall))
        )
    losses = [group.dense - group.compressed for group in found.classes]
    assert losses == sorted(losses, reverse=True)
    assert sum(group.examples for group in found.classes) == 400


def test_flipped_examples_are_the_surest_and_have_their_places():
    dense, compressed, target = answers()
    places = torch.arange(1000, 1400)
    metric = AnswerFidelity(flips=7)
    for some in torch.arange(400).split(90):
        metric.update(dense[some], compressed[some], target[some], indices=places[some])
    flipped = metric.compute().flipped
    sure = compressed.softmax(1).max(1).values.numpy()
    flips = np.flatnonzero(dense.argmax(1).numpy() != compressed.argmax(1).numpy())
    order = flips[np.argsort(-sure[flips])][:7]
    assert [flip.index for flip in flipped] == [1000 + place for place in order]
    assert [flip.confidence for flip in flipped] == pytest.approx(sure[order])
    for flip, place in zip(flipped, order, strict=True):
        assert (flip.target, flip.dense, flip.compressed) == (
            int(target[place]),
            int(dense[place].argmax()),
            int(compressed[place].argmax()),
        )


def test_places_are_counted_on_over_batches_ignored_examples_too():
    same, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    metric = AnswerFidelity()
    metric.update(same.repeat(3, 1), same.repeat(3, 1), torch.tensor([0, -100, 0]))
    metric.update(same.repeat(2, 1), torch.cat([same, other]), torch.tensor([0, 0]))
    assert [flip.index for flip in metric.compute().flipped] == [4]
    assert AnswerFidelity(flips=0).flipped.shape == (0, 5)


def test_identical_models_agree_fully():
    dense, _, target = answers()
    found = fidelity((dense, dense.clone(), target))
    assert (found.agreement, found.kl, found.flips, found.broken, found.mended, found.flipped) == (
        1.0,
        0.0,
        0,
        0,
        0,
        (),
    )
    assert found.mcc.dense == found.mcc.compressed


def test_batches_of_any_size_and_merged_states_give_what_all_at_once_gives():
    dense, compressed, target = answers()
    whole = fidelity((dense, compressed, target))
    parts = [AnswerFidelity(), AnswerFidelity()]
    for number, some in enumerate(torch.arange(400).split(37)):
        slices = ["odd" if place % 2 else "even" for place in some.tolist()]
        parts[number % 2].update(dense[some], compressed[some], target[some], indices=some, slices=slices)
    parts[0].merge_state(parts[1])
    merged = asdict(parts[0].compute())
    slices = {group["name"]: group for group in merged.pop("slices")}
    expected = asdict(whole)
    expected.pop("slices")
    assert merged.pop("kl") == pytest.approx(expected.pop("kl"))
    for which in ("dense", "compressed"):
        assert merged["calibration_error"].pop(which) == pytest.approx(expected["calibration_error"].pop(which))
    assert merged == expected
    right = (dense.argmax(1) == target)[1::2].double().mean()
    assert (slices["odd"]["examples"], slices["odd"]["dense"]) == (200, pytest.approx(float(right)))


def test_slices_may_overlap_and_stand_with_the_largest_loss_first():
    logits = torch.eye(3)
    metric = AnswerFidelity()
    masks = {"all": torch.ones(3).bool(), "last, größte": torch.tensor([False, False, True])}
    metric.update(logits, logits.roll(1, 0)[[1, 2, 2]], torch.tensor([0, 1, 2]), slices=masks)
    metric.update(logits, logits, torch.tensor([0, 1, 2]), slices={"all": torch.ones(3).bool()})
    metric.update(logits, logits, torch.tensor([0, 1, 2]))
    assert metric.compute().slices == (Group("last, größte", 1, 1.0, 0.0), Group("all", 6, 1.0, pytest.approx(5 / 6)))


def test_tokens_without_a_target_are_left_out():
    dense, compressed, target = (one.reshape(20, 20, *one.shape[1:]) for one in answers())
    target = target.clone()
    target[:, 13:] = -100
    kept = (dense[:, :13].reshape(-1, 5), compressed[:, :13].reshape(-1, 5), target[:, :13].flatten())
    metric = AnswerFidelity()
    metric.update(dense, compressed, target, indices=torch.arange(20) + 50, slices=["a"] * 20)
    found, expected = metric.compute(), fidelity(kept)
    assert (found.predictions, found.flips, found.broken) == (260, expected.flips, expected.broken)
    assert found.kl == pytest.approx(expected.kl)
    assert found.slices[0].examples == 260
    assert {flip.index for flip in found.flipped} <= set(range(50, 70))


def test_one_logit_is_a_binary_model_under_a_sigmoid():
    generator = torch.Generator().manual_seed(1)
    dense, compressed = torch.randn(2, 200, 1, generator=generator)
    target = torch.randint(2, (200,), generator=generator)
    found = fidelity((dense, compressed, target.float().unsqueeze(1)), num_classes=1)
    assert found == fidelity((dense, compressed, target))
    assert found.agreement == float(((dense > 0) == (compressed > 0)).double().mean())
    p, q = dense.sigmoid().double(), compressed.sigmoid().double()
    assert found.kl == pytest.approx(float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()), rel=1e-5)
    assert found.mcc.dense == pytest.approx(sk.matthews_corrcoef(target, (dense > 0).flatten()))
    alone = AnswerFidelity(num_classes=1)
    alone.update(dense, compressed)
    assert alone.compute().agreement == found.agreement


def test_without_targets_accuracy_is_unknown():
    dense, compressed, target = answers()
    found, known = fidelity((dense, compressed)), fidelity((dense, compressed, target))
    assert (found.agreement, found.kl) == (known.agreement, known.kl)
    assert (found.broken, found.mended, found.mcc, found.macro_f1, found.calibration_error) == (None,) * 5
    assert found.classes == found.slices == ()
    assert found.flipped[0].target is None


def test_classes_are_named():
    logits = torch.eye(2)
    assert fidelity((logits, logits, torch.tensor([1, 1])), class_names=["good", "bad"]).classes[0].name == "bad"


def test_a_model_that_knows_one_class_only_has_no_correlation():
    logits = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    found = fidelity((logits, logits, torch.tensor([0, 1, 0, 1])))
    assert (found.mcc.dense, found.macro_f1.dense) == (0.0, pytest.approx((4 / 6 + 0) / 2))


def test_a_full_confidence_falls_into_the_last_bin():
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    found = fidelity((logits, logits, torch.tensor([0, 1, 0, 0])))
    expected = abs((2 + 2 * float(torch.tensor(3.0).sigmoid())) - 3) / 4  # all four are above 14/15
    assert found.calibration_error.dense == pytest.approx(expected)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_other_precisions(kind):
    dense, compressed, target = answers()
    found = fidelity((dense.to(kind), compressed.to(kind), target))
    exact = torch.nn.functional.kl_div(
        compressed.to(kind).double().log_softmax(1),
        dense.to(kind).double().log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
    assert found.kl == pytest.approx(float(exact), rel=1e-5)


def test_classes_that_a_model_rules_out():
    dense = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert fidelity((dense, torch.tensor([[0.0, 1.0, -torch.inf]]))).kl == 0.0
    assert fidelity((dense, torch.tensor([[0.0, -torch.inf, 1.0]]))).kl == torch.inf


def test_a_vocabulary_needs_no_matrix():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(4, 60, 30_522, generator=generator)
    target = dense.argmax(-1).where(torch.rand(4, 60, generator=generator) < 0.5, 7)
    metric = AnswerFidelity()
    metric.update(dense, dense.flip(0), target)
    assert max(getattr(metric, state).numel() for state in metric.metric_state) == 5 * 30_522
    found = metric.compute()
    assert len(found.classes) == len(target.unique())
    assert found.mcc.dense == pytest.approx(sk.matthews_corrcoef(target.flatten(), dense.argmax(-1).flatten()))


def test_large_batches_are_taken_in_parts(monkeypatch):
    dense, compressed, target = answers()
    target = target.clone()
    target[5:25] = -100
    whole = fidelity((dense, compressed, target))
    monkeypatch.setattr("lightning_compress.measurement.fidelity._NUMBERS_AT_A_TIME", 50)
    parts = fidelity((dense, compressed, target))
    assert parts.kl == pytest.approx(whole.kl)
    assert (parts.flipped, parts.classes, parts.mcc) == (whole.flipped, whole.classes, whole.mcc)


def test_forward_gives_the_batch_and_keeps_all():
    dense, compressed, target = answers()
    metric = AnswerFidelity()
    assert metric(dense[:100], compressed[:100], target[:100]).predictions == 100
    assert metric(dense[100:], compressed[100:], target[100:]).predictions == 300
    assert metric.compute().predictions == 400
    metric.reset()
    metric.update(dense[:3], compressed[:3], target[:3])
    assert metric.compute().predictions == 3


def test_what_was_reset_in_inference_mode_goes_on_outside():
    dense, compressed, target = answers()
    metric = AnswerFidelity()
    with torch.inference_mode():
        metric.update(dense[:5], compressed[:5], target[:5])
        metric.reset()
    metric.update(dense, compressed, target, slices=["a"] * 400)
    assert metric.compute().mcc == fidelity((dense, compressed, target)).mcc


def compute_on_one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for shares in ([0, 1, 0, 0], [0, 0, 0, 0]):  # unequal, and nothing at all for the second
        metric = AnswerFidelity(5)
        for part, some in zip(shares, torch.arange(400).split(100), strict=True):
            if part == rank:
                names = [f"slice {place % 3}" for place in some.tolist()]
                metric.update(*(one[some] for one in answers()), indices=some, slices=names)
        results.append(asdict(metric.compute()))
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_agree_with_one(tmp_path):
    run_in_forks(compute_on_one_of_two, (0, tmp_path), (1, tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    metric = AnswerFidelity()
    places = torch.arange(400)
    metric.update(*answers(), indices=places, slices=[f"slice {place % 3}" for place in places.tolist()])
    alone = json.loads(json.dumps(asdict(metric.compute())))
    for found in first:
        for name in ("kl", "calibration_error"):
            assert found.pop(name) == pytest.approx(alone[name])
        assert found == {name: value for name, value in alone.items() if name in found}


LOGITS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(4), torch.zeros(4)), {}, r"dense_logits of shape \[4\].*no logits.*regression has no classes"),
        ((LOGITS.long(), LOGITS.long()), {}, r"torch.int64 are no logits"),
        ((LOGITS, torch.zeros(4, 2)), {}, r"compressed_logits of shape \[4, 2\]: the dense model gives \[4, 3\]"),
        ((LOGITS, LOGITS, torch.rand(4)), {}, r"target of type torch.float32 holds numbers, not classes"),
        ((LOGITS[:, :1], LOGITS[:, :1], torch.rand(4)), {}, r"answers of a regression have no classes"),
        ((LOGITS[:, :1], LOGITS[:, :1]), {}, r"could be a regression; write num_classes=1"),
        ((LOGITS, LOGITS, torch.zeros(3).long()), {}, r"target of shape \[3\] does not fit logits of shape \[4, 3\]"),
        ((LOGITS, LOGITS, torch.zeros(4, 3).long()), {}, r"Classes must be the last dimension"),
        ((LOGITS, LOGITS, torch.tensor([0, 1, 3, 0])), {}, r"target holds 3, which is none of the 3 classes 0 to 2"),
        ((LOGITS, LOGITS, torch.tensor([0, -1, 2, 0])), {}, r"target holds -1"),
        ((LOGITS, LOGITS), {"num_classes": 4}, r"dense_logits have 3 classes .* where num_classes=4"),
        ((LOGITS, LOGITS), {"class_names": ["a"]}, r"class_names= has 1 names for 3 classes"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, options, message):
    with pytest.raises(ConfigurationError, match=message):
        AnswerFidelity(**options).update(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": torch.zeros(3)}, r"indices of shape \[3\] do not fit: one for each of the 4 examples"),
        ({"slices": "ab"}, r"slices of type str: give a list with a name"),
        ({"slices": ["a"] * 3}, r"slices of shape \[3\] do not fit"),
        ({"slices": {"": torch.ones(4)}}, r"slices= has the name ''"),
        ({"slices": {"x" * 121: torch.ones(4)}}, r"write 1 to 120 bytes"),
        ({"slices": {str(name): torch.ones(4) for name in range(101)}}, r"more than 100 slices"),
    ],
)
def test_what_stands_beside_the_answers_must_fit(options, message):
    with pytest.raises(ConfigurationError, match=message):
        AnswerFidelity().update(LOGITS, LOGITS, torch.zeros(4).long(), **options)


def test_slices_need_targets():
    with pytest.raises(ConfigurationError, match="slices= says where accuracy is wanted, which needs target="):
        AnswerFidelity().update(LOGITS, LOGITS, slices=["a"] * 4)


def test_another_number_of_classes_is_refused():
    metric = AnswerFidelity()
    metric.update(LOGITS, LOGITS, torch.zeros(4).long())
    with pytest.raises(ConfigurationError, match="dense_logits have 2 classes, and 3 in the batches before"):
        metric.update(LOGITS[:, :2], LOGITS[:, :2], torch.zeros(4).long())


@pytest.mark.parametrize(("name", "value"), [("num_classes", 0), ("num_classes", 2.0), ("flips", -1), ("flips", True)])
def test_constructor_values_are_checked(name, value):
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        AnswerFidelity(**{name: value})


def test_models_without_probabilities_are_named():
    broken = LOGITS.clone()
    broken[1, 2] = torch.nan
    with pytest.raises(CompressionError, match="dense_logits hold NaN or infinity"):
        AnswerFidelity().update(broken, LOGITS)
    broken[1, 2] = torch.inf
    with pytest.raises(CompressionError, match="compressed_logits hold NaN or infinity"):
        AnswerFidelity().update(LOGITS, broken)


def test_nothing_to_compare():
    metric = AnswerFidelity()
    metric.update(LOGITS, LOGITS, torch.full((4,), -100))
    with pytest.raises(CompressionError, match="no prediction was compared"):
        metric.compute()


def test_a_flip_says_what_the_models_answered():
    found = fidelity((torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]]), torch.tensor([1])))
    assert found.flipped == (Flip(0, 1, dense=1, compressed=0, confidence=pytest.approx(1 / (1 + np.exp(-1)))),)
