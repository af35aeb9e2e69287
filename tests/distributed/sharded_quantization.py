"""Quantization-aware fits under ModelParallelStrategy, run by sharded_qat.py, and their like on one process."""

import warnings

import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import (
    CompressionReport,
    GradualPruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
    quantize,
)
from lightning_compress.core.gathering import reshard, sharding_modules
from lightning_compress.core.layout import local
from lightning_compress.quantization.model import quantizers_of
from tests.conformance.tiny import WINDOW, ResumableLoader, loader, trainer
from tests.distributed.sharded_fits import (
    CutForGood,
    OnMeta,
    Overflows,
    Sharded,
    Uneven,
    Watch,
    scaled,
    strategy,
    weights,
    write,
)

LEARNED = {"weight_bits": 4, "activation_bits": 4, "method": "lsq"}
WEIGHTS_ALONE = {"activation_bits": None}
MOMENTS = {"start": WINDOW["start"], "freeze_ranges": WINDOW["end"]}


class Module(pl.LightningModule):
    """What the models below share: features in, loss out."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)


class Convolutional(Module):
    """Normalized convolutions, one of them in a group of its own, and a residual sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 3, 3, padding=1, bias=False)  # one before a norm has no gradient but rounding
        self.norm, self.active = nn.BatchNorm2d(3), nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.head = nn.Linear(24, 2)

    def forward(self, features):
        hidden = self.active(self.norm(self.first(features.view(-1, 1, 2, 4))))
        return self.head(F.relu(self.block(hidden) + hidden).flatten(1))


class ShardedConvolutional(Convolutional):
    def configure_model(self):
        for module in (self.first, self.block, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class Language(Module):
    """A Hugging Face model, its attention quantized, embeddings too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
        dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(vocab_size=15, max_position_embeddings=8, attn_implementation="sdpa", **sizes, **dropouts)
        self.network = BertForSequenceClassification(config)

    def forward(self, features):
        return self.network(input_ids=(features.abs() * 5).long().clamp(max=14)).logits


class ShardedLanguage(Language):
    def configure_model(self):
        for module in (*self.network.bert.encoder.layer, self.network):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class Readers(Module):
    """Layers that read their weights in ways of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent = nn.LSTM(2, 6, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(6, 2, 9, dropout=0.0, batch_first=True)
        self.up = nn.ConvTranspose1d(6, 5, 2)
        self.head = nn.Linear(25, 2)

    def forward(self, features):
        hidden = self.attention(self.recurrent(features.view(-1, 4, 2))[0])
        return self.head(self.up(hidden.transpose(1, 2)).flatten(1))


class ShardedReaders(Readers):
    def configure_model(self):
        for module in (self.recurrent, self.attention, self.up, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


def quantizing(**settings):
    return [QuantizationAwareTraining(**settings, **MOMENTS)]


def everything():
    """Distillation from a copy, pruning and quantization in one fit."""
    pruning = GradualPruning(0.5, include="network.*.weight", **WINDOW)
    return [KnowledgeDistillation("self"), pruning, *quantizing(**LEARNED)]


FITS = {  # the model on one process, the sharded one, and the callbacks
    "minmax": (Uneven, Sharded, quantizing),
    "lsq": (Uneven, Sharded, lambda: quantizing(**LEARNED, include="*")),
    "pact": (Uneven, Sharded, lambda: quantizing(activation_bits=4, method="pact")),
    "mse": (Uneven, Sharded, lambda: quantizing(weight_bits=3, method="mse", weight_granularity="per_tensor")),
    "ttq": (Uneven, Sharded, lambda: quantizing(weight_bits="ttq", **WEIGHTS_ALONE)),
    "binaryconnect": (Uneven, Sharded, lambda: quantizing(weight_bits="binaryconnect", **WEIGHTS_ALONE)),
    "folded": (Convolutional, ShardedConvolutional, lambda: quantizing(method="percentile")),
    "language": (Language, ShardedLanguage, lambda: quantizing(**LEARNED, include="*", attention=True)),
    "readers": (Readers, ShardedReaders, lambda: quantizing(weight_bits=4, include="*")),
    "everything": (Uneven, Sharded, everything),
}
RESUMED = {"lsq": (1, 2, 4), "folded": (1, 2)}  # by so many processes
IN_ONE_FILE = ("lsq",)  # the other checkpoints are folders


def ranges(model):
    return {
        f"{name}.{kept}": tensor.detach().clone()
        for name, quantizer in quantizers_of(model)
        for kept, tensor in quantizer.held().items()
    }


def fit(model, callbacks, *, batches=None, save_to=None, ckpt_path=None, **settings):
    """Train for 16 steps; what came out, of the whole model."""
    watch = Watch(save_to, of=len(callbacks) - 1)
    run = trainer(*callbacks, watch, **settings)
    run.fit(model, ResumableLoader() if batches is None else batches, loader(8, shuffle=False), ckpt_path=ckpt_path)
    result = {"weights": weights(model), "ranges": ranges(model), "said": watch.said, "steps": watch.steps}
    return run, result | {"loss": float(run.callback_metrics["val_loss"])}


def train_and_save(folder):
    """Each fit from its beginning."""
    for name, (_, sharded, callbacks) in FITS.items():
        path = folder / f"{name}.ckpt" if name in RESUMED else None
        run, result = fit(sharded(), callbacks(), save_to=path, **strategy(folder=name not in IN_ONE_FILE))
        if name == "lsq":
            result["tested"] = run.validate(run.lightning_module, loader(8, shuffle=False), verbose=False)
        write(result, folder / f"{name}, whole run.pt")


def go_on(folder):
    """Fits from the checkpoint on the way."""
    size = torch.distributed.get_world_size()
    for name in (name for name, sizes in RESUMED.items() if size in sizes):
        _, sharded, callbacks = FITS[name]
        how = strategy(folder=name not in IN_ONE_FILE)
        _, result = fit(sharded(), callbacks(), ckpt_path=folder / f"{name}.ckpt", **how)
        write(result, folder / f"{name}, resumed by {size}.pt")


class Half(ResumableLoader):
    """What one of two processes sees of each batch, or what both see."""

    def __init__(self, rank=None):
        super().__init__(batch_size=8)
        self.features[::2] *= 3.0
        self.chosen = slice(None) if rank is None else slice(rank, None, 2)

    def __iter__(self):
        for features, labels in super().__iter__():
            yield features[self.chosen], labels[self.chosen]


class Wide(Module):
    """Weights that are larger than what a batch makes of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 64))
        self.head = nn.Linear(64, 2)
        self.kept = []

    def forward(self, features):
        return self.head(self.network(features))

    def training_step(self, batch, batch_idx):
        stored = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: stored.append(tensor) or tensor, lambda kept: kept
        ):
            loss = super().training_step(batch, batch_idx)
        sizes = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in stored}
        self.kept.append(sum(size for size in sizes.values() if size >= 4 * 64 * 64))
        return loss


class ShardedWide(Wide):
    def configure_model(self):
        for module in (*self.network, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class Diverges(Sharded):
    """A weight becomes NaN in the last process's part alone, before anything is computed with it."""

    def on_before_optimizer_step(self, optimizer):
        if self.global_step == WINDOW["end"] - 1 and self.global_rank == self.trainer.world_size - 1:
            reshard(sharding_modules(self))
            local(self.network[0].weight).fill_(float("nan"))


def message_of(model, callbacks, **settings):
    """What a fit that must fail says."""
    try:
        fit(model, callbacks, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def reported(folder):
    """What a report says of a sharded model."""
    report = CompressionReport(dirpath=folder, runtimes=[])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = trainer(*quantizing(), report, **strategy())
        run.fit(Sharded(), ResumableLoader(), loader(8, shuffle=False))
    names = list(report.report.compressed.metrics) if report.report else []
    return {"metrics": names, "said": [str(one.message) for one in said if "CompressionReport" in str(one.message)]}


def others(folder):
    """Different data on each rank, a model on the meta device, an overflow; what is kept, and what is refused."""
    rank = torch.distributed.get_rank()
    _, half = fit(Sharded(), quantizing(), batches=Half(rank), **strategy())
    torch.save(half, folder / f"half {rank}.pt")
    result = {}
    _, result["meta"] = fit(OnMeta(), quantizing(**LEARNED), **strategy())
    before = quantize(Sharded(), loader(8, shuffle=False))
    _, result["quantized before"] = fit(before, quantizing(**LEARNED), **strategy())
    _, result["overflow"] = fit(Overflows(), quantizing(**LEARNED), **strategy(), **scaled())
    wide = ShardedWide()
    fit(wide, quantizing(**LEARNED), **strategy())
    result["kept"] = wide.kept
    size = torch.distributed.get_world_size()
    result["tensor parallel"] = message_of(CutForGood(), quantizing(), **strategy(tensor_parallel=size))
    result["report"] = reported(folder / "report")
    result["nan"] = message_of(Diverges(), quantizing(**WEIGHTS_ALONE), **strategy())
    torch.save(result, folder / f"others {rank}.pt")
