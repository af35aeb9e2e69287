import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from lightning_compress import CompressionError, ConfigurationError, TargetError
from lightning_compress.measurement.probe import LinearProbe, probe_layers
from tests.measurement.test_similarity import Tokens, random, sentences


def clouds(count=300, classes=4, features=10, seed=0):
    """Points around a centre for each class, on very different scales, one feature constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = random(classes, features, seed=7)
    points = centres[labels] + 1.5 * torch.randn(count, features, generator=generator)
    points = points * 10.0 ** torch.arange(-3, features - 3) + 5
    points[:, 3] = 0.1
    return points, labels * 10


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_a_probe_is_scikit_learns_logistic_regression(strength):
    points, labels = clouds()
    probe = LinearProbe(points[:200], labels[:200], strength=strength)
    scaler = StandardScaler().fit(points[:200].double())
    judge = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(
        scaler.transform(points[:200].double()), labels[:200]
    )
    np.testing.assert_allclose(probe.weight.T, judge.coef_, atol=1e-4)
    difference = probe.bias.numpy() - judge.intercept_
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-4)  # biases are known but for a shift
    held_out = scaler.transform(points[200:].double())
    assert (probe.predict(points[200:]).numpy() == judge.predict(held_out)).all()
    assert probe.accuracy(points[200:], labels[200:]) == pytest.approx(judge.score(held_out, labels[200:]))
    assert 0.5 < probe.accuracy(points[200:], labels[200:]) < 1.0


def test_a_probe_draws_no_random_number_and_is_always_the_same():
    points, labels = clouds()
    state = torch.get_rng_state()
    with torch.inference_mode():
        first = LinearProbe(points.clone(), labels)
    torch.manual_seed(5)
    second = LinearProbe(points, labels)
    assert torch.equal(first.weight, second.weight)
    torch.set_rng_state(state)
    LinearProbe(points, labels)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (torch.zeros(3), torch.zeros(3), {}, r"features of shape \[3\], labels of shape \[3\]"),
        (torch.zeros(3, 2), torch.zeros(4), {}, r"write \[examples, features\] and \[examples\]"),
        (torch.zeros(3, 2), torch.zeros(3), {}, "labels hold one class only"),
        (torch.eye(3), torch.arange(3), {"strength": 0}, "strength=0: write a number above 0"),
    ],
)
def test_a_probe_refuses_what_it_cannot_learn_from(features, labels, options, message):
    with pytest.raises(ConfigurationError, match=message):
        LinearProbe(features, labels, **options)


def test_layers_are_probed_on_the_mean_of_their_tokens():
    model = Tokens()
    train, held_out = list(sentences(8)), list(sentences(12))[8:]
    found = probe_layers(model, train, held_out)
    assert list(found) == ["embedding", "dense", "head"]  # positions are the same for all examples
    model.eval()

    def means(batches):
        rows = []
        for batch in batches:
            hidden = model.dense(model.embedding(batch["input_ids"]) + model.position.weight[None, :6])
            for sentence, kept in zip(hidden.detach(), batch["attention_mask"].bool(), strict=True):
                rows.append(sentence[kept].mean(0).double().numpy())
        return np.stack(rows), np.concatenate([batch["labels"] for batch in batches])

    scaler = StandardScaler().fit(means(train)[0])
    judge = LogisticRegression(tol=1e-8, max_iter=5000).fit(scaler.transform(means(train)[0]), means(train)[1])
    assert found["dense"] == pytest.approx(judge.score(scaler.transform(means(held_out)[0]), means(held_out)[1]))


def test_images_are_averaged_and_what_a_layer_destroys_is_gone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(36, 2))
    nn.init.zeros_(model[2].weight)
    labels = torch.arange(40) % 2
    images = random(40, 1, 3, 3) + 3.0 * labels[:, None, None, None]
    halves = [[(images[:20], labels[:20])], [(images[20:], labels[20:])]]
    found = probe_layers(model, *halves)
    assert found["0"] == 1.0
    assert found["2"] == pytest.approx(0.5)
    assert model.training
    assert probe_layers(model, *halves, layers="[02]") == {"0": found["0"], "2": found["2"]}


def test_examples_without_a_label_are_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    inputs = random(20, 2)
    labels = (inputs[:, 0] > 0).long()
    spoiled = torch.cat([labels, torch.full((5,), -100)])
    more = torch.cat([inputs, 100 * random(5, 2, seed=3)])
    assert probe_layers(model, [(more, spoiled)], [(more, spoiled)]) == probe_layers(
        model, [(inputs, labels)], [(inputs, labels)]
    )


PAIR = (torch.eye(4), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"train": []}, ConfigurationError, "train has no batch"),
        ({"held_out": []}, ConfigurationError, "held_out has no batch"),
        ({"train": [torch.eye(4)]}, ConfigurationError, "train has a batch of type Tensor without labels"),
        ({"train": [{"x": torch.eye(4)}]}, ConfigurationError, "train has a batch of type dict without labels"),
        ({"train": [(torch.eye(4), torch.rand(4))]}, ConfigurationError, "one class, an integer, for each example"),
        ({"train": [(torch.eye(4), torch.ones(4, 3).long())]}, ConfigurationError, r"labels of shape \[4, 3\]"),
        ({"train": [(torch.eye(4), torch.ones(4).long())]}, ConfigurationError, "labels hold one class only"),
        ({"layers": "nothing"}, TargetError, "layers='nothing' matches no module"),
        ({"layers": "1"}, ConfigurationError, "layers='1': 1 gives nothing an example"),
        ({"train": [(torch.full((4, 4), torch.nan), PAIR[1])]}, CompressionError, "layer 0: a feature is NaN"),
    ],
)
def test_what_cannot_be_probed_is_refused(options, kind, message):
    class Model(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    given = {"train": [PAIR], "held_out": [PAIR]} | options
    with pytest.raises(kind, match=message):
        probe_layers(Model(nn.Linear(4, 4), nn.Linear(4, 4)), given.pop("train"), given.pop("held_out"), **given)
