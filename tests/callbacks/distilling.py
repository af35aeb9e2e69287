"""Students, teachers and ways of distilling for the tests of distillation."""

import torch
from torch import nn

from lightning_compress import KnowledgeDistillation
from lightning_compress.distillation import Contrastive, DeepToShallow, Hint, LogitMSE, Peer, SoftTargets


def teacher(seed=3):
    """Wider than a ``Tiny``, with dropout, and in train mode, as it may come."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(32, 2))


WAYS = {
    "soft targets": lambda: KnowledgeDistillation(teacher()),
    "projection": lambda: KnowledgeDistillation(teacher(), [SoftTargets(), Hint([("body.3", "0")])]),
    "memory bank": lambda: KnowledgeDistillation(teacher(), [Contrastive(bank=16)]),
    "self": lambda: KnowledgeDistillation("self", [LogitMSE()]),
    "moving average": lambda: KnowledgeDistillation("ema", ema_decay=0.9),
    "two teachers": lambda: KnowledgeDistillation([teacher(), teacher(4)], [Hint([("body.3", "0")])], draw=True),
    "peer": lambda: KnowledgeDistillation(Peer(teacher())),
    "early layers": lambda: KnowledgeDistillation(None, [DeepToShallow(["body.0", "body.3"])]),
    "label-free": lambda: KnowledgeDistillation(teacher(), task_weight=0),
}
