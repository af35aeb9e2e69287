"""Number types of student, teacher and projections, and gradient scalers."""

import copy

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import KnowledgeDistillation, TransformerModule, convert
from lightning_compress.distillation import HiddenStates, Hint, SoftTargets
from tests.callbacks.distilling import teacher
from tests.conformance.tiny import Tiny, fit, loader


class Overflowing(Tiny):
    def on_after_backward(self):
        if self.trainer.fit_loop.batch_idx in (0, 4):
            self.body[0].weight.grad.view(-1)[0] = torch.inf


def projecting():
    return KnowledgeDistillation(teacher(), [SoftTargets(), Hint([("body.3", "0")])])


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_projections_wait_where_the_scaler_skips(fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    callback = projecting()
    fit(Overflowing(fused=fused), callback, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert scaler.get_scale() == 64.0 / 2**4, "the scaler saw all four"
    steps = {int(moments["step"]) for moments in callback._handover._kept["method"]["moments"]}
    assert steps == {12}


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_projections_learn_the_same_whatever_the_scale(fused):
    found = []
    for scale in (1.0, 1024.0):
        callback = projecting()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        module = Tiny(fused=fused, eps=1e-3)
        module.body[2] = torch.nn.Identity()
        fit(module, callback, plugins=[precision], batches=loader(shuffle=False), max_epochs=1)
        assert scaler.get_scale() == scale
        found.append(callback._handover._kept["method"]["learned"])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_projections_are_float32_and_learn(precision):
    callback = projecting()
    fit(Tiny(), callback, precision=precision)
    learned = callback._handover._kept["method"]["learned"]
    assert {value.dtype for value in learned.values()} == {torch.float32}
    assert all(moments["exp_avg"].abs().sum() > 0 for moments in callback._handover._kept["method"]["moments"])


def test_a_copy_that_stays_is_of_the_type_in_which_the_module_trains():
    callback, module = KnowledgeDistillation("self"), Tiny()
    for _ in range(2):  # the second goes on with the copy of the first
        run = fit(module, callback, precision="bf16-true", max_epochs=1)
        assert {parameter.dtype for parameter in callback.copies["self"].parameters()} == {torch.bfloat16}
    assert run.global_step == 8


def bert(layers, seed):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, num_labels=2, **sizes))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("to", ["bitsandbytes-nf4", "bitsandbytes-int8"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_hugging_face_teacher_in_bitsandbytes_teaches_a_student_in_full_precision(to, precision):
    small = convert(bert(4, seed=1), to=to)
    packed = {name: value.clone() for name, value in small.state_dict().items()}
    assert any(value.dtype in {torch.uint8, torch.int8} for value in packed.values())
    tokens = torch.randint(1, 50, (8, 7), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in tokens]
    module = TransformerModule(bert(2, seed=2), schedule="constant", learning_rate=1e-3)
    before = copy.deepcopy(module.state_dict())
    callback = KnowledgeDistillation(small, [SoftTargets(), HiddenStates()])
    run = fit(module, callback, batches=DataLoader(rows, 4), limit_val_batches=0, precision=precision, max_epochs=1)
    for name in ("soft_targets", "hidden_states"):
        assert 0 < run.logged_metrics[f"distillation/{name}"] < 100
    moved = [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]
    assert any("encoder.layer.0" in name for name in moved)
    assert all(torch.equal(value, packed[name]) for name, value in small.state_dict().items())
    with torch.no_grad():  # the teacher of few bits answers nearly what the dense one does
        dense = bert(4, seed=1).eval()(input_ids=tokens).logits
        torch.testing.assert_close(small(input_ids=tokens).logits.float(), dense, rtol=0.3, atol=0.1)
