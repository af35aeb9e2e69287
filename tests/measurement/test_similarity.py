import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress import CompressionError, ConfigurationError, TargetError
from lightning_compress.measurement.layer_outputs import LayerOutputs, layers_with_weights
from lightning_compress.measurement.similarity import LinearCKA, layer_similarity


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram_cka(x, y):
    """By kernels, which is another way than covariances: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    x, y = (np.asarray(one, np.float64) for one in (x, y))
    centre = np.eye(len(x)) - 1 / len(x)
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741
    return np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))


def cka(x, y, sizes):
    metric = LinearCKA()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        metric.update(a, b)
    return float(metric.compute())


@pytest.mark.parametrize("sizes", [60, 7, 1])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_over_batches_it_is_exactly_that_of_all_examples(sizes, offset):
    x = random(60, 5) + offset
    y = torch.cat([x[:, :2] * 3, random(60, 6, seed=1)], 1)
    assert cka(x, y, sizes) == pytest.approx(gram_cka(x, y), rel=1e-9)
    assert 0.05 < cka(x, y, sizes) < 0.95


def test_rotations_shifts_and_scales_change_nothing():
    x = random(80, 6)
    rotation = torch.linalg.qr(random(6, 6, seed=2)).Q
    assert cka(x, 5 * x @ rotation - 3, 20) == pytest.approx(1.0, abs=1e-6)
    assert cka(x, x * torch.tensor([9.0, 1, 1, 1, 1, 1]), 20) < 0.9


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics counts updates, not merges
def test_states_merge_exactly():
    x, y = random(50, 4), random(50, 3, seed=1)
    parts = [LinearCKA(), LinearCKA(), LinearCKA()]
    parts[0].update(x[:13], y[:13])
    parts[1].update(x[13:], y[13:])
    parts[0].merge_state(parts[1])
    parts[2].merge_state(parts[0])  # into one that has seen nothing
    assert float(parts[2].compute()) == pytest.approx(gram_cka(x, y), rel=1e-12)


def test_what_is_constant_has_no_similarity():
    assert np.isnan(cka(torch.full((9, 2), 0.1), random(9, 2), 3))


def test_examples_that_do_not_fit_are_refused():
    metric = LinearCKA()
    with pytest.raises(ConfigurationError, match=r"x of shape \[3, 2\] and y of shape \[4, 2\]"):
        metric.update(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ConfigurationError, match=r"write two matrices"):
        metric.update(torch.zeros(3, 2, 2), torch.zeros(3, 2))
    metric.update(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(CompressionError, match="two examples or more, and 1 was seen"):
        metric.compute()
    with pytest.raises(ConfigurationError, match="y has 2 features, and 3 in the calls before"):
        metric.update(torch.zeros(1, 2), torch.zeros(1, 2))


class Tokens(nn.Module):
    """Embeds tokens, mixes them, and answers from the first."""

    def __init__(self, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(20, width)
        self.position = nn.Embedding(9, width)
        self.dense = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.embedding(input_ids) + self.position(torch.arange(input_ids.shape[1])[None])
        hidden = self.dropout(self.dense(hidden)).relu_()
        return {"logits": self.head(self.norm(hidden[:, 0])), "cache": None}


def sentences(count=3, tokens=6):
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, tokens + 1, (10, 1), generator=generator)
        ids = torch.randint(20, (10, tokens), generator=generator)
        yield {"input_ids": ids, "attention_mask": (torch.arange(tokens) < lengths).long(), "labels": ids[:, 0] % 3}


def test_tokens_count_and_padding_does_not():
    dense, compressed = Tokens(), Tokens(width=5, seed=1)
    found = layer_similarity(dense, compressed, sentences())
    assert list(found) == ["embedding", "position", "dense", "head"]
    x, y, xs, ys = [], [], [], []
    for batch in sentences():
        kept = batch["attention_mask"].bool()
        for model, rows, answers in ((dense.eval(), x, xs), (compressed.eval(), y, ys)):
            hidden = model.embedding(batch["input_ids"]) + model.position.weight[None, :6]
            rows.append(model.dense(hidden)[kept])  # before the rectifier that works in place
            answers.append(model(**batch)["logits"])
    whole = [torch.cat(rows).detach() for rows in (x, y, xs, ys)]
    assert found["dense"] == pytest.approx(gram_cka(*whole[:2]), rel=1e-5)
    assert found["head"] == pytest.approx(gram_cka(*whole[2:]), rel=1e-5)


def test_models_are_left_as_they_were():
    dense, compressed = Tokens(), Tokens(seed=1).eval()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    state = torch.get_rng_state()
    found = layer_similarity(dense, compressed, sentences())
    assert dense.training
    assert dense.dropout.training
    assert not compressed.training
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in [*dense.modules(), *compressed.modules()])
    assert found == layer_similarity(dense, compressed, sentences())
    with pytest.raises(ConfigurationError, match="Tokens failed on a batch of type dict"):
        layer_similarity(dense, compressed, [{"nothing": 1}])
    assert dense.training
    assert not dense.embedding._forward_hooks


def test_positions_of_images_count_with_channels_as_features():
    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 16, 2))

    dense, compressed, images = network(0), network(1), random(8, 3, 6, 6)
    found = layer_similarity(dense, compressed, [(images, torch.zeros(8))], layers=["0", "3"])
    x, y = (model[0](images).detach().permute(0, 2, 3, 1).reshape(-1, 6) for model in (dense, compressed))
    assert found["0"] == pytest.approx(gram_cka(x, y), rel=1e-5)
    assert list(found) == ["0", "3"]


def test_fused_attention_is_looked_into():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = layer_similarity(layer, layer, [random(2, 5, 8)])
    assert set(found) == {"self_attn", "linear1", "linear2"}  # out_proj is read, not called
    assert all(value == pytest.approx(1.0) for value in found.values())


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    with LayerOutputs(model, layers_with_weights(model)) as outputs:
        assert [len(one) for one in outputs.of(random(3, 4))["layer"]] == [3, 3]
    assert layer_similarity(model, model, [random(5, 4)])["layer"] == pytest.approx(1.0)


def test_a_pruned_layer_that_gives_nothing_is_not_a_number():
    dense, compressed = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    nn.init.zeros_(compressed[0].weight)
    assert np.isnan(layer_similarity(dense, compressed, [random(6, 4)])["0"])


def test_very_wide_layers_are_left_out_by_name_unless_asked_for():
    model = nn.Sequential(nn.Linear(4, 4097), nn.Linear(4097, 2))
    with pytest.warns(UserWarning, match="layer_similarity left out 0: more than 4096 features"):
        assert list(layer_similarity(model, model, [random(6, 4)])) == ["1"]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"layers": "sdense"}, TargetError, r"layers='sdense' matches no module of Tokens. Near: 'dense'"),
        ({"layers": 3}, ConfigurationError, "layers=3 is no pattern"),
        ({"batches": []}, ConfigurationError, "batches has no batch"),
        ({"batches": {"input_ids": 1}}, ConfigurationError, r"batches of type dict .* give a DataLoader, or a list"),
        ({"batches": [3]}, ConfigurationError, "a batch of type int is nothing to call a model with"),
        ({"compressed": nn.Linear(2, 2)}, ConfigurationError, "share no layer's name"),
        (
            {"compressed": nn.Linear(2, 2), "layers": "dense"},
            ConfigurationError,
            "dense is no module of the compressed model",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(options, kind, message):
    given = {"compressed": Tokens(), "batches": list(sentences(1))} | options
    with pytest.raises(kind, match=message):
        layer_similarity(Tokens(), given.pop("compressed"), given.pop("batches"), **given)


def test_models_that_see_other_positions_are_refused():
    dense, compressed = nn.Sequential(nn.Conv1d(2, 2, 3)), nn.Sequential(nn.Conv1d(2, 2, 3, stride=2))
    with pytest.raises(ConfigurationError, match="0 gives 16 positions in the dense and 8 in the compressed model"):
        layer_similarity(dense, compressed, [random(2, 2, 10)])


def test_a_named_layer_that_is_not_called_is_refused():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(ConfigurationError, match=r"self_attn\.out_proj gave nothing to compare"):
        layer_similarity(layer, layer, [random(2, 5, 8)], layers="*.out_proj")


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigurationError, match=r"compressed of type str: give a torch\.nn\.Module"):
        layer_similarity(nn.Linear(2, 2), "small.ckpt", [torch.ones(1, 2)])
