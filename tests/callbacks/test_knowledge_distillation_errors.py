"""What cannot be distilled, and what is said about it."""

import re

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import CheckpointError, ConfigurationError, KnowledgeDistillation, TransformerModule
from lightning_compress.distillation import DecoupledKD, FeaturePair, Hint, SoftTargets
from tests.callbacks.distilling import teacher
from tests.conformance.interruption import run_to_the_end, run_until
from tests.conformance.tiny import Tiny, fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": []}, "losses=[]: expected a list of losses, such as [SoftTargets(temperature=2.0)]"),
        ({"losses": SoftTargets()}, "expected a list of losses"),
        ({"task_weight": -1}, "task_weight=-1: expected a number from 0"),
        ({"task_weight": True}, "task_weight=True"),
        ({"task_weight": 0, "losses": [DecoupledKD()]}, "task_weight=0 is label-free, and decoupled_kd needs labels"),
        ({"teacher": "dense"}, "teacher='dense': expected a module, a LogitCache, 'self', 'ema' or None"),
        ({"teacher": []}, "teacher=[]"),
        ({"teacher_weights": [1, 2]}, "teacher_weights=[1, 2]: expected a positive number for each of 1 teachers"),
        ({"teacher_weights": [0]}, "teacher_weights=[0]"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: expected a float in [0, 1)"),
        ({"backward": -1}, "backward=-1"),
        ({"teacher_dtype": "int8"}, "teacher_dtype='int8' is none of 'float32', 'bfloat16', 'float16'"),
        ({"teacher": None}, "teacher=None: soft_targets compares with a teacher"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        KnowledgeDistillation(**{"teacher": teacher()} | arguments)


def test_the_same_teacher_twice():
    one = teacher()
    with pytest.raises(ConfigurationError, match="give one teacher, or several that differ"):
        KnowledgeDistillation([one, one])


def test_teacher_and_student_are_one():
    module = Tiny()
    for one in (module, module.body, nn.Sequential(module.body, module.head)):
        with pytest.raises(ConfigurationError, match="teacher and student are the same object, or share parameters"):
            fit(module, KnowledgeDistillation(one))


def test_class_counts_that_differ():
    with pytest.raises(ConfigurationError, match=r"2.*3|classes"):
        fit(Tiny(), KnowledgeDistillation(nn.Linear(8, 3)))


def test_a_name_that_is_absent():
    with pytest.raises(ConfigurationError, match=r"'body\.33' names no module of Tiny\. Near: 'body\.3'"):
        fit(Tiny(), KnowledgeDistillation(teacher(), [Hint([("body.33", "0")])], network=""))
    with pytest.raises(ConfigurationError, match=r"'modle' names no module of Tiny"):
        fit(Tiny(), KnowledgeDistillation(teacher(), network="modle"))
    with pytest.raises(ConfigurationError, match=r"'body\.\*' matches \d modules of Tiny"):
        fit(Tiny(), KnowledgeDistillation(teacher(), [Hint([("body.*", "0")])], network=""))


def test_two_modules_called_one_after_the_other():
    class Two(Tiny):
        def loss(self, batch):
            return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    with pytest.raises(ConfigurationError, match="training_step calls 'body', 'head' one after the other"):
        fit(Two(), KnowledgeDistillation(teacher()))
    run = fit(Two(), KnowledgeDistillation(nn.Linear(8, 16), network="body"))
    assert "distillation/soft_targets" in run.logged_metrics


def test_a_network_that_is_never_called():
    class Other(Tiny):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(8, 2)

    with pytest.raises(ConfigurationError, match="10 training steps never called the network with gradients"):
        fit(Other(), KnowledgeDistillation(teacher(), network="unused"))


def test_a_module_that_is_not_called_with_the_network():
    class Unused(Tiny):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(8, 2)

    with pytest.raises(ConfigurationError, match="'unused' was not called when Unused was"):
        fit(Unused(), KnowledgeDistillation(teacher(), [Hint([("unused", "0")])]))


def test_a_teacher_that_cannot_be_called_like_the_student():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, one, other):
            return self.layer(one + other)

    with pytest.raises(ConfigurationError, match="the teacher Two cannot be called as the student is"):
        fit(Tiny(), KnowledgeDistillation(Two()))


def test_a_feature_that_is_no_tensor():
    class Odd(Tiny):
        def __init__(self):
            super().__init__()
            self.odd = Dictionary()

        def forward(self, features):
            self.odd(features)
            return super().forward(features)

    pair = FeaturePair("odd", "0", pick="missing")
    with pytest.raises(ConfigurationError, match="'odd': pick='missing' does not fit its dict"):
        fit(Odd(), KnowledgeDistillation(teacher(), [Hint([pair])]))
    with pytest.raises(ConfigurationError, match="'odd' gives dict and in it no floating tensor"):
        fit(Odd(), KnowledgeDistillation(teacher(), [Hint([FeaturePair("odd", "0")])]))


class Dictionary(nn.Module):
    def forward(self, features):
        return {"number": 3}


def test_labels_that_are_needed_and_not_there():
    class Pairless(Tiny):
        def loss(self, batch):
            return self(batch[0]).square().mean()

    with pytest.raises(ConfigurationError, match="labels"):
        fit(Pairless(), KnowledgeDistillation(teacher(), [DecoupledKD()]), batches=_loader_of_features())
    with pytest.raises(ConfigurationError, match="labels='y': the batch, a list, has no such entry"):
        fit(Tiny(), KnowledgeDistillation(teacher(), labels="y"))


def _loader_of_features():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 8)), 4)


def test_manual_optimization():
    class Manual(Tiny):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(self.loss(batch))
            self.optimizers().step()

    with pytest.raises(ConfigurationError, match="task_weight=0 calls the network in place of training_step"):
        fit(Manual(), KnowledgeDistillation(teacher(), task_weight=0))
    with pytest.raises(ConfigurationError, match="backward=1: training_step calls manual_backward 1 times"):
        fit(Manual(), KnowledgeDistillation(teacher(), backward=1))


def test_label_free_without_a_forward():
    class Formless(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ConfigurationError, match="Formless has no forward: name the submodule to call by network="):
        fit(Formless(), KnowledgeDistillation(teacher(), task_weight=0))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_vocabularies_that_differ():
    def bert(words):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        return BertForSequenceClassification(BertConfig(vocab_size=words, **sizes))

    batch = {"input_ids": torch.ones(3, dtype=torch.long), "labels": torch.tensor(1)}
    with pytest.raises(ConfigurationError, match="vocabulary of 20 tokens and the teacher one of 21"):
        fit(
            TransformerModule(bert(20)),
            KnowledgeDistillation(bert(21)),
            batches=torch.utils.data.DataLoader([batch]),
            limit_val_batches=0,
        )


def test_an_argument_that_the_teacher_does_not_know_is_left_out():
    class Keywords(Tiny):
        def forward(self, features, extra=None):
            return super().forward(features)

        def loss(self, batch):
            return nn.functional.cross_entropy(self(features=batch[0], extra=1), batch[1])

    class Named(nn.Linear):
        def forward(self, features):
            return super().forward(features)

    with pytest.warns(UserWarning, match="the teacher Named takes no extra: called without"):
        fit(Keywords(), KnowledgeDistillation(Named(8, 2)))


def test_a_copy_that_cannot_be_rebuilt(tmp_path):
    path = run_until(5, tmp_path, Tiny(), KnowledgeDistillation("self"))
    other = Tiny()
    nn.init.zeros_(other.head.bias)
    with torch.no_grad():
        other.head.weight.add_(1)
    with pytest.raises(CheckpointError, match="teacher='self' was a copy of the module as it was when the run began"):
        run_to_the_end(other, KnowledgeDistillation("self"), ckpt_path=path)


def test_projections_of_other_shapes(tmp_path):
    path = run_until(5, tmp_path, Tiny(), KnowledgeDistillation(teacher(), [Hint([("body.3", "0")])]))
    with pytest.raises(CheckpointError, match="the checkpoint's projections are not those of these losses"):
        run_to_the_end(Tiny(), KnowledgeDistillation(teacher(), [Hint([("body.3", "3")])]), ckpt_path=path)


def test_a_damaged_state(tmp_path):
    path = run_until(5, tmp_path, Tiny(), KnowledgeDistillation(teacher()))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_compress"]["KnowledgeDistillation"] = {"method": 3}
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="state of KnowledgeDistillation is damaged"):
        run_to_the_end(Tiny(), KnowledgeDistillation(teacher()), ckpt_path=path)


def test_two_of_them():
    with pytest.raises(ConfigurationError, match="give all teachers to one"):
        fit(Tiny(), KnowledgeDistillation(teacher()), KnowledgeDistillation(teacher(4)))
