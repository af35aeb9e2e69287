import copy
import re

import pytest
import torch
from torch import nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import functional, losses
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation
from lightning_compress.distillation.losses import (
    DIST,
    RKD,
    AttentionMaps,
    AttentionTransfer,
    Contrastive,
    Correlation,
    DecoupledKD,
    DeepToShallow,
    Flow,
    HiddenStates,
    Hint,
    LogitMSE,
    MiniLMRelations,
    NeuronSelectivity,
    SequenceKD,
    SimilarityPreserving,
    SoftTargets,
)
from tests.distillation.judges import close, numbers, shown

MAPS = {"early": "first", "late": "second"}
LABELS = torch.tensor([0, 4, 2, 1])
MASK = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)


class Student(nn.Module):
    """A small network for images."""

    def __init__(self):
        super().__init__()
        self.early = nn.Conv2d(2, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 5, 3, padding=1, stride=2)
        self.head = nn.Linear(5, 5)

    def forward(self, images):
        return self.head(self.late(self.early(images).tanh()).tanh().mean(dim=(2, 3)))


class Teacher(nn.Module):
    """A wider one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 7, 3, padding=1)
        self.head = nn.Linear(7, 5)

    def forward(self, images):
        return self.head(self.second(self.first(images).tanh()).tanh().mean(dim=(2, 3)))


EVERY = [
    SoftTargets(),
    SoftTargets(standardize=True),
    LogitMSE(),
    DecoupledKD(),
    DIST(),
    Hint(MAPS),
    AttentionTransfer(MAPS),
    Flow(MAPS),
    NeuronSelectivity(MAPS),
    RKD(),
    RKD(MAPS, angle=0.0),
    SimilarityPreserving(),
    SimilarityPreserving(MAPS),
    Correlation(kernel="bilinear"),
    Correlation(MAPS),
    Contrastive(bank=8, size=8),
    Contrastive({"late": "second"}, bank=8, size=8),
]


@pytest.fixture
def networks():
    torch.manual_seed(1)
    return Student(), Teacher()


@pytest.mark.parametrize("loss", EVERY, ids=repr)
def test_a_student_learns_from_a_teacher_in_inference_mode(loss, networks):
    student, teacher = networks
    images = [numbers(4, 2, 4, 4, seed=seed) for seed in range(3)]
    learned = loss.learned(*shown(loss, student, teacher, images=images[0]))
    parameters = [*student.parameters(), *(learned.parameters() if learned is not None else [])]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    first = last = None
    for step in range(40):
        own, other = shown(loss, student, teacher, labels=LABELS, images=images[step % 3])
        term = loss(own, other, learned)
        optimizer.zero_grad()
        term.backward()
        if step in {3, 39}:  # the memory of the contrastive term is full by then
            first, last = (term.item(), last) if first is None else (first, term.item())
            assert (
                sum(parameter.grad.abs().sum() for parameter in student.parameters() if parameter.grad is not None) > 0
            )
        optimizer.step()
    assert last < first
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_every_loss_is_public_and_tested_here():
    public = {getattr(losses, name) for name in losses.__all__}
    elsewhere = {AttentionMaps, DeepToShallow, HiddenStates, MiniLMRelations, SequenceKD}
    assert {type(loss) for loss in EVERY} == public - elsewhere
    assert all(issubclass(one, DistillationLoss) for one in public)
    assert [type(loss).__name__ for loss in EVERY if not loss.is_label_free] == ["DecoupledKD"]


LOGITS = {
    SoftTargets(temperature=3.0): lambda s, t: functional.soft_targets(s, t, temperature=3.0),
    SoftTargets(standardize=True): lambda s, t: functional.standardized_logits(s, t, temperature=2.0),
    LogitMSE(): functional.logit_mse,
    DecoupledKD(beta=2.0): lambda s, t: functional.decoupled(s, t, LABELS, temperature=4.0, alpha=1.0, beta=2.0),
    DIST(intra=3.0): lambda s, t: functional.dist(s, t, temperature=1.0, inter=1.0, intra=3.0),
    RKD(): lambda s, t: 25.0 * functional.rkd_distance(s, t) + 50.0 * functional.rkd_angle(s, t),
    RKD(distance=0.0): lambda s, t: 50.0 * functional.rkd_angle(s, t),
    SimilarityPreserving(): functional.similarity_preserving,
    Correlation(gamma=0.2): lambda s, t: functional.correlation(s, t, kernel="gaussian", gamma=0.2, order=2),
}


@pytest.mark.parametrize("loss", LOGITS, ids=repr)
def test_settings_reach_the_formula(loss):
    student, teacher = numbers(4, 5), numbers(4, 5, seed=1)
    found = loss(Observation(student, labels=LABELS), Observation(teacher, labels=LABELS))
    close(found, LOGITS[loss](student, teacher).item(), tolerance=1e-6)


FEATURES = {
    AttentionTransfer(MAPS): functional.attention_transfer,
    NeuronSelectivity(MAPS): functional.neuron_selectivity,
    Hint(MAPS): functional.hint,
    SimilarityPreserving(MAPS): functional.similarity_preserving,
}


@pytest.mark.parametrize("loss", FEATURES, ids=repr)
def test_terms_of_several_pairs_are_summed(loss):
    student = [numbers(4, 3, 2, 2), numbers(4, 5, 2, 2, seed=1)]
    teacher = [numbers(4, 3, 2, 2, seed=2), numbers(4, 5, 2, 2, seed=3)]
    expected = sum(FEATURES[loss](*both).item() for both in zip(student, teacher, strict=True))
    close(loss(Observation(None, student), Observation(None, teacher)), expected, tolerance=1e-6)


def test_flow_goes_from_each_layer_to_the_next():
    student = [numbers(4, 3, 2, 2, seed=seed) for seed in range(3)]
    teacher = [numbers(4, 3, 2, 2, seed=seed) for seed in range(3, 6)]
    expected = functional.flow((student[0], student[1]), (teacher[0], teacher[1])) + functional.flow(
        (student[1], student[2]), (teacher[1], teacher[2])
    )
    close(Flow(["a", "b", "c"])(Observation(None, student), Observation(None, teacher)), expected.item())


TOKENS = [
    SoftTargets(),
    SoftTargets(standardize=True),
    LogitMSE(),
    DecoupledKD(),
    DIST(),
    RKD(),
    SimilarityPreserving(),
    Correlation(),
    SequenceKD(beta=0.5),
    Hint("layer"),
    Contrastive("layer", bank=8, size=4),
    Contrastive(bank=8, size=4),
]


@pytest.mark.parametrize("loss", TOKENS, ids=repr)
def test_padding_has_no_influence(loss):
    labels = torch.tensor([[0, 4, 2], [1, 1, 0], [3, 2, 1], [4, 0, 0]])
    seen = [numbers(4, 3, 5, seed=seed) for seed in range(2)]

    def term(padding):
        own, other = (
            Observation(logits, [logits], mask=MASK, labels=labels)
            for logits in (torch.where(MASK[..., None], one, padding * one**2) for one in seen)
        )
        learned = loss.learned(own, other)
        if isinstance(loss, Contrastive):
            loss(own, other, learned)  # fill the memory
        return loss(own, other, learned)

    before = term(0.0)
    assert before > 0
    close(term(1e3), before.item(), tolerance=1e-6)
    close(term(-1e4), before.item(), tolerance=1e-6)


def test_response_losses_average_over_tokens_that_count():
    student, teacher = numbers(4, 3, 5), numbers(4, 3, 5, seed=1)
    found = SoftTargets()(Observation(student, mask=MASK), Observation(teacher, mask=MASK))
    close(found, functional.soft_targets(student[MASK], teacher[MASK], temperature=2.0).item())
    close(found, SequenceKD(temperature=2.0)(Observation(student, mask=MASK), Observation(teacher)).item())


def test_a_mask_of_tokens_does_not_touch_logits_of_samples():
    student, teacher = numbers(4, 5), numbers(4, 5, seed=1)
    masked = Observation(student, mask=MASK, labels=LABELS), Observation(teacher, mask=MASK)
    whole = Observation(student, labels=LABELS), Observation(teacher)
    for loss in (SoftTargets(), DIST(), DecoupledKD(), RKD()):
        assert torch.equal(loss(*masked), loss(*whole))


@pytest.mark.parametrize("loss", [SoftTargets(), DecoupledKD(), DIST(), RKD(), Contrastive(), SequenceKD()], ids=repr)
def test_a_network_without_logits_is_refused(loss):
    with pytest.raises(ConfigurationError, match=f"^{type(loss).__name__} compares logits"):
        loss(Observation(None), Observation(numbers(4, 5)), nn.ModuleList())


def test_shapes_that_do_not_fit_are_refused():
    own, other = Observation(numbers(4, 3, 5), mask=MASK[:, :2]), Observation(numbers(4, 3, 5))
    for loss in (SoftTargets(), SequenceKD()):
        with pytest.raises(ConfigurationError, match=r"mask has shape \[4, 2\]: expected \[4, 3\]"):
            loss(own, other)
    with pytest.raises(ConfigurationError, match="5 classes and the teacher's 4"):
        SoftTargets()(Observation(numbers(4, 3, 5), mask=MASK), Observation(numbers(4, 3, 4), mask=MASK))
    with pytest.raises(ConfigurationError, match=r"\[4, 5\] and the teacher's \[4, 6\]"):
        Hint("layer")(Observation(None, [numbers(4, 5)]), Observation(None, [numbers(4, 6)]))


def test_decoupled_says_where_labels_come_from():
    with pytest.raises(ConfigurationError, match=r"DecoupledKD needs class labels.*labels=.*SoftTargets"):
        DecoupledKD()(Observation(numbers(4, 5)), Observation(numbers(4, 5)))


# --- settings ---------------------------------------------------------------------------------------------------------

REFUSED = [
    (lambda: SoftTargets(temperature=0.0), "SoftTargets(temperature=0.0): expected a positive number."),
    (lambda: SoftTargets(temperature=float("nan")), "SoftTargets(temperature=nan)"),
    (lambda: SoftTargets(weight=-1.0), "SoftTargets(weight=-1.0)"),
    (lambda: SoftTargets(standardize=1), "SoftTargets(standardize=1): expected True or False."),
    (lambda: LogitMSE(weight=0), "LogitMSE(weight=0)"),
    (lambda: DecoupledKD(temperature="4"), "DecoupledKD(temperature='4')"),
    (lambda: DecoupledKD(alpha=-1.0), "DecoupledKD(alpha=-1.0): expected a number, at least 0."),
    (lambda: DecoupledKD(alpha=0, beta=0), "DecoupledKD(alpha=0, beta=0): expected one of them above 0."),
    (lambda: DIST(temperature=-2), "DIST(temperature=-2)"),
    (lambda: DIST(inter=0.0, intra=0.0), "DIST(inter=0.0, intra=0.0)"),
    (lambda: DIST(intra=True), "DIST(intra=True)"),
    (lambda: RKD(distance=0, angle=0), "RKD(distance=0, angle=0)"),
    (lambda: RKD(angle=float("inf")), "RKD(angle=inf)"),
    (lambda: Correlation(kernel="rbf"), "Correlation(kernel='rbf'): expected 'gaussian' or 'bilinear'."),
    (lambda: Correlation(gamma=0), "Correlation(gamma=0)"),
    (lambda: Correlation(order=0), "Correlation(order=0): expected a whole number, at least 1."),
    (lambda: Correlation(order=2.0), "Correlation(order=2.0)"),
    (lambda: SimilarityPreserving(weight=None), "SimilarityPreserving(weight=None)"),
    (lambda: Contrastive(bank=0), "Contrastive(bank=0): expected a whole number, at least 1."),
    (lambda: Contrastive(size=True), "Contrastive(size=True)"),
    (lambda: Contrastive(size=1), "Contrastive(size=1): expected a whole number, at least 2."),
    (lambda: Contrastive(temperature=0), "Contrastive(temperature=0)"),
    (lambda: SequenceKD(beta=1.5), "SequenceKD(beta=1.5): expected a number from 0 to 1."),
    (lambda: SequenceKD(beta="0"), "SequenceKD(beta='0')"),
    (lambda: SequenceKD(temperature=0), "SequenceKD(temperature=0)"),
    (lambda: Hint([]), "Hint(pairs=[]): expected names of modules to compare"),
    (lambda: Hint({}), "Hint(pairs=[])"),
    (lambda: Hint(None), "Hint(pairs=None)"),
    (lambda: Hint([("a", "b", "c")]), "Hint(pairs=[('a', 'b', 'c')])"),
    (lambda: Hint([3]), "Hint(pairs=[3])"),
    (lambda: Hint([["a", 3]]), "Hint(pairs=[['a', 3]])"),
    (lambda: Hint("a", weight=0), "Hint(weight=0)"),
    (lambda: AttentionTransfer(3), "AttentionTransfer(pairs=3)"),
    (lambda: NeuronSelectivity("a", weight="1"), "NeuronSelectivity(weight='1')"),
    (lambda: Flow("a"), "Flow(pairs='a'): expected at least two layers"),
    (lambda: AttentionMaps("first"), "AttentionMaps(layers='first'): expected 'uniform' or 'last'."),
    (lambda: AttentionMaps([]), "AttentionMaps(layers=[]): expected 'uniform', 'last', or numbers of layers"),
    (lambda: AttentionMaps({0: "1"}), "AttentionMaps(layers={0: '1'})"),
    (lambda: AttentionMaps(causal="yes"), "AttentionMaps(causal='yes')"),
    (lambda: HiddenStates([True]), "HiddenStates(layers=[True])"),
    (lambda: HiddenStates(3), "HiddenStates(layers=3)"),
    (lambda: HiddenStates(distance="l1"), "HiddenStates(distance='l1'): expected 'mse' or 'cosine'."),
    (lambda: HiddenStates(embeddings=None), "HiddenStates(embeddings=None)"),
    (lambda: MiniLMRelations("uniform"), "MiniLMRelations(layers='uniform'): expected 'last', a layer"),
    (lambda: MiniLMRelations(True), "MiniLMRelations(layers=True)"),
    (lambda: MiniLMRelations({}), "MiniLMRelations(layers={})"),
    (lambda: MiniLMRelations(heads=0), "MiniLMRelations(heads=0): expected a whole number, at least 1."),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_values_are_refused_with_argument_and_value(build, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        build()


PAIR = FeaturePair("a", "b")


@pytest.mark.parametrize("pairs", [[PAIR], PAIR, (PAIR,), {"a": "b"}, [("a", "b")], [["a", "b"]]], ids=repr)
def test_pairs_may_be_written_in_several_ways(pairs):
    assert Hint(pairs).pairs(nn.Identity(), nn.Identity()) == (PAIR,)
    assert Hint(pairs) == Hint([PAIR])


def test_one_name_is_meant_for_both_networks():
    expected = (FeaturePair("layer"),)
    for pairs in ("layer", ["layer"]):
        assert AttentionTransfer(pairs).pairs(nn.Identity(), nn.Identity()) == expected
        assert RKD(pairs).pairs(nn.Identity(), nn.Identity()) == expected
    for loss in (RKD(), Contrastive(), SoftTargets()):
        assert tuple(loss.pairs(nn.Identity(), nn.Identity())) == ()


def test_a_loss_shows_its_settings_and_equals_one_with_the_same():
    assert repr(SoftTargets(temperature=4.0)) == "SoftTargets(temperature=4.0, weight=1.0, standardize=False)"
    assert repr(RKD(angle=1.0)) == "RKD(pairs=None, distance=25.0, angle=1.0, weight=1.0)"
    assert "pairs=(FeaturePair(student='a', teacher='b'" in repr(Hint({"a": "b"}))
    assert repr(MiniLMRelations({2: 5}, heads=4)) == "MiniLMRelations(layers={2: 5}, heads=4, weight=1.0)"
    assert SoftTargets(temperature=4.0) == SoftTargets(temperature=4)
    assert SoftTargets(temperature=4.0) != SoftTargets(temperature=3.0)
    assert LogitMSE() != SoftTargets()
    assert Hint({"a": "b"}) != Hint({"a": "c"})
    assert Hint({"a": "b"}) != AttentionTransfer({"a": "b"}, weight=1.0)
    assert len({HiddenStates([1, 2]), HiddenStates([1, 2]), HiddenStates([1, 3])}) == 2
    assert copy.deepcopy(Hint({"a": "b"})) == Hint({"a": "b"})


def test_names_are_fit_for_a_log():
    assert [loss.name for loss in (SoftTargets(), LogitMSE(), RKD(), AttentionMaps())] == [
        "soft_targets",
        "logit_mse",
        "rkd",
        "attention_maps",
    ]


# --- what is learned --------------------------------------------------------------------------------------------------


def seen(*shapes, dtype=torch.float32):
    return Observation(None, [numbers(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes)])


LEARNING = [
    (Hint("a"), [(4, 3)], [(4, 6)]),
    (Hint("a"), [(4, 2, 3)], [(4, 2, 6)]),
    (Hint("a"), [(4, 3, 2, 2)], [(4, 6, 4, 4)]),
    (Hint(["a", "b"]), [(4, 3), (4, 5)], [(4, 6), (4, 5)]),
    (Flow(["a", "b"]), [(4, 3, 2, 2), (4, 3, 2, 2)], [(4, 6, 2, 2), (4, 5, 2, 2)]),
    (HiddenStates(), [(4, 2, 3), (4, 2, 3)], [(4, 2, 6), (4, 2, 6)]),
    (Contrastive("a", bank=8, size=4), [(4, 3)], [(4, 6)]),
    (Contrastive("a", bank=8, size=4), [(4, 3, 2, 2)], [(4, 6, 4, 4)]),
]


@pytest.mark.parametrize(("loss", "own", "other"), LEARNING, ids=repr)
def test_what_is_learned_fits_any_width_and_starts_the_same_without_the_global_generator(loss, own, other):
    student, teacher = seen(*own), seen(*other)
    before = torch.get_rng_state()
    learned = loss.learned(student, teacher)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    again = loss.learned(student, teacher).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in learned.state_dict().items())
    assert all(parameter.dtype is torch.float32 for parameter in learned.parameters())
    loss(student, teacher, learned)
    loss(student, teacher, learned).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in learned.parameters())


@pytest.mark.parametrize(("loss", "own", "other"), LEARNING, ids=repr)
def test_it_works_for_networks_in_bfloat16(loss, own, other):
    student, teacher = seen(*own, dtype=torch.bfloat16), seen(*other, dtype=torch.bfloat16)
    learned = loss.learned(student, teacher)
    assert all(parameter.dtype is torch.float32 for parameter in learned.parameters())
    loss(student, teacher, learned)
    term = loss(student, teacher, learned)
    assert term.dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        close(loss(student, teacher, learned), term.item(), tolerance=0.1)


def test_projections_are_used_where_widths_differ_and_only_there():
    loss = Hint(["a", "b"])
    student, teacher = seen((4, 3), (4, 5)), seen((4, 6), (4, 5))
    learned = loss.learned(student, teacher)
    assert [type(one) for one in learned] == [nn.Linear, nn.Identity]
    expected = functional.hint(learned[0](student.features[0]), teacher.features[0])
    expected = expected + functional.hint(student.features[1], teacher.features[1])
    close(loss(student, teacher, learned), expected.item(), tolerance=1e-6)
    assert loss.learned(seen((4, 6)), seen((4, 6))) is None
    for other in (SoftTargets(), RKD(), AttentionTransfer("a"), MiniLMRelations()):
        assert other.learned(student, teacher) is None


def test_initial_weights_are_spread_as_torch_spreads_them():
    (projection,) = Hint("a").learned(seen((2, 400)), seen((2, 100)))
    reference = nn.Linear(400, 100)
    for found, expected in zip(projection.parameters(), reference.parameters(), strict=True):
        assert found.shape == expected.shape
        assert found.abs().max() <= 400**-0.5
        close(found.std(), expected.std().item(), tolerance=0.01)


def test_a_feature_without_a_width_is_refused():
    with pytest.raises(ConfigurationError, match=r"A feature has shape \[4\]: expected \[batch, ..., width\]"):
        Hint("a").learned(seen((4,)), seen((4,)))


# --- the memory of the contrastive term -------------------------------------------------------------------------------


def remembered(loss, batches, indices=None):
    """Terms, and the memory after them."""
    learned, terms = None, []
    for place, (own, other) in enumerate(batches):
        given = None if indices is None else indices[place]
        student, teacher = Observation(own, indices=given), Observation(other, indices=given)
        learned = loss.learned(student, teacher) if learned is None else learned
        terms.append(loss(student, teacher, learned))
    return terms, learned[0]


def test_the_last_samples_are_remembered_and_the_oldest_go_first():
    loss = Contrastive(bank=7, size=4)
    batches = [(numbers(3, 5, seed=seed), numbers(3, 6, seed=seed + 50)) for seed in range(4)]
    terms, memory = remembered(loss, batches)
    embedded = [memory.embed(*batch) for batch in batches]
    for place, bank in enumerate((memory.student_bank, memory.teacher_bank)):
        every = torch.cat([both[place] for both in embedded])  # 12 samples, of which the last 7 stay in a ring
        assert all(torch.equal(bank[sample % 7], every[sample]) for sample in range(5, 12))
    assert terms[0] == 0.0
    expected = functional.contrastive(*embedded[1], *embedded[0], None, temperature=0.07)
    close(terms[1], expected.item())
    assert memory.seen == 12
    assert len(set(memory.parameters())) == 4
    assert {name for name, _ in memory.named_buffers()} == {"student_bank", "teacher_bank", "indices", "seen"}


def test_a_batch_larger_than_the_memory_leaves_its_end():
    loss = Contrastive(bank=4, size=3)
    own, other = numbers(6, 5), numbers(6, 5, seed=1)
    _, memory = remembered(loss, [(own, other)])
    kept = memory.embed(own, other)[0][2:]
    assert {tuple(row) for row in memory.student_bank.tolist()} == {tuple(row) for row in kept.tolist()}


def test_maps_and_tokens_are_averaged_before_they_are_embedded():
    loss = Contrastive("layer", bank=8, size=4)
    tokens, maps = numbers(4, 3, 5), numbers(4, 6, 2, 3, seed=1)
    means = torch.stack([sample[kept].mean(dim=0) for sample, kept in zip(tokens, MASK, strict=True)])
    whole = Observation(None, [tokens], mask=MASK), Observation(None, [maps])
    averaged = Observation(None, [means]), Observation(None, [maps.flatten(2).mean(dim=2)])
    found, expected = loss.learned(*whole), loss.learned(*averaged)
    for _ in range(2):
        terms = loss(*whole, found), loss(*averaged, expected)
    close(terms[0], terms[1].item())
    assert terms[0] > 0


def test_a_sample_is_no_other_of_its_own():
    loss = Contrastive(bank=8, size=4)
    batch = numbers(3, 5), numbers(3, 6, seed=1)
    indices = torch.tensor([5, 0, 9])
    terms, memory = remembered(loss, [batch, batch], [indices, indices.flip(0)])
    embedded = memory.embed(*batch)
    counts = ~torch.eye(3, dtype=torch.bool).flip(0)
    close(terms[1], functional.contrastive(*embedded, *embedded, counts, temperature=0.07).item())
    assert memory.indices[:6].tolist() == [5, 0, 9, 9, 0, 5]


def test_nothing_is_remembered_outside_of_training():
    loss = Contrastive(bank=8, size=4)
    student, teacher = Observation(numbers(3, 5)), Observation(numbers(3, 6, seed=1))
    learned = loss.learned(student, teacher)
    loss(student, teacher, learned)
    before = copy.deepcopy(learned.state_dict())
    learned.eval()
    loss(student, teacher, learned)
    assert all(torch.equal(value, before[name]) for name, value in learned.state_dict().items())


def test_the_backward_pass_sees_the_memory_as_it_was():
    loss = Contrastive(bank=8, size=4)
    own = numbers(3, 5).requires_grad_()
    student, teacher = Observation(own), Observation(numbers(3, 6, seed=1))
    learned = loss.learned(student, teacher)
    sum(loss(student, teacher, learned) for _ in range(3)).backward()
    assert own.grad.abs().sum() > 0


def test_the_state_of_the_memory_can_be_saved_and_resumed():
    loss = Contrastive(bank=8, size=4)
    student, teacher = Observation(numbers(3, 5)), Observation(numbers(3, 6, seed=1))
    learned = loss.learned(student, teacher)
    loss(student, teacher, learned)
    resumed = loss.learned(student, teacher)
    resumed.load_state_dict(copy.deepcopy(learned.state_dict()))
    assert torch.equal(loss(student, teacher, resumed), loss(student, teacher, learned))


def test_contrastive_without_its_memory_is_refused():
    with pytest.raises(ConfigurationError, match="Contrastive needs the memory"):
        Contrastive()(Observation(numbers(3, 5)), Observation(numbers(3, 5)))
