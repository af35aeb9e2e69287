"""A file that holds for fewer sizes than its model says so."""

import warnings

import pytest
import torch
from torch import nn

from lightning_compress.export import export
from tests.export.onnx_files import run

TOKENS = torch.randint(20, (4, 10), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """Means of word vectors, computed otherwise for sentences of more than 16 words, or only for those of up to 64."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.words, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)
        self.places = nn.Parameter(torch.randn(64, 16))

    def forward(self, tokens):
        if self.way == "cut":
            tokens = tokens[:, :16]
        vectors = self.words(tokens)
        if self.way == "branch" and tokens.shape[1] > 16:
            vectors = -vectors
        if self.way != "branch":
            vectors = vectors + self.places[: tokens.shape[1]]
        return self.head(vectors.mean(1))


@pytest.mark.parametrize(
    ("way", "length", "sizes"),
    [("cut", 10, "2 <= length <= 15"), ("branch", 10, "2 <= length <= 16"), ("branch", 20, "17 <= length")],
)
def test_sizes_for_which_the_model_takes_another_way(way, length, sizes, tmp_path):
    sample = TOKENS.repeat(1, 2)[:, :length]
    with pytest.warns(UserWarning, match=rf"model\.onnx is right for {sizes} alone: beyond, Words takes a way"):
        export(Words(way), tmp_path / "model.onnx", sample, runtime_check=False)


def test_sizes_that_the_model_itself_refuses_are_no_news(tmp_path):
    model, path = Words("whole").eval(), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(model, path, TOKENS, runtime_check=False)
    longest = TOKENS.repeat(1, 7)[:, :64]
    torch.testing.assert_close(run(path, longest), model(longest).detach(), rtol=1e-4, atol=1e-5)


def test_a_size_that_is_fixed_has_no_other_ways(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(Words("branch"), tmp_path / "model.onnx", TOKENS, runtime_check=False, dynamic={"tokens": {0: "batch"}})
