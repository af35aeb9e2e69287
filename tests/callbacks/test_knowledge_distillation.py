"""What is added to a training step, beside loops written by hand."""

import copy
from contextlib import nullcontext

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_compress import (
    GradualPruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
    TransformerModule,
    convert,
)
from lightning_compress.distillation import AttentionMaps, Hint, LogitCache, LogitMSE, MiniLMRelations, SoftTargets
from tests.callbacks.distilling import WAYS, teacher
from tests.conformance.interruption import assert_bitwise_equal, everything, run_to_the_end, run_until
from tests.conformance.tiny import Tiny, TinyOfLightning, fit, loader

NO_LOADER = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


@pytest.fixture(params=WAYS)
def make(request):
    return WAYS[request.param]


class Calm(Tiny):
    """Without dropout, so that a loop written by hand draws the same."""

    def __init__(self):
        super().__init__(eps=1e-3)  # nor does Adam magnify the last bits of small gradients
        self.body[2] = nn.Identity()


def by_hand(module, loss_of, batches):
    """What training is, without Lightning."""
    optimizer = module.configure_optimizers()
    for features, labels in batches:
        optimizer.zero_grad()
        loss_of(module(features), features, labels).backward()
        optimizer.step()
    return module


def assert_alike(module, expected):
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_trains_on_the_sum_of_both_losses():
    knows, batches = teacher().eval(), list(loader(shuffle=False)) * 2

    def loss_of(logits, features, labels):
        with torch.no_grad():
            target = (knows(features) / 3).softmax(-1)
        soft = -(target * ((logits / 3).log_softmax(-1) - target.log())).sum() / len(labels) * 9
        return 0.3 * F.cross_entropy(logits, labels) + 0.7 * soft

    expected = by_hand(Calm(), loss_of, batches)
    module = Calm()
    fit(
        module,
        KnowledgeDistillation(teacher(), [SoftTargets(temperature=3.0, weight=0.7)]),
        batches=loader(shuffle=False),
    )
    assert_alike(module, expected)


def test_several_teachers_are_averaged_by_their_weights():
    knows, batches = [teacher().eval(), teacher(4).eval()], list(loader(shuffle=False)) * 2

    def loss_of(logits, features, labels):
        with torch.no_grad():
            targets = [one(features) for one in knows]
        return F.cross_entropy(logits, labels) + sum(
            share * F.mse_loss(logits, target) for share, target in zip((0.75, 0.25), targets, strict=True)
        )

    expected = by_hand(Calm(), loss_of, batches)
    module = Calm()
    callback = KnowledgeDistillation([teacher(), teacher(4)], [LogitMSE()], 1.0, teacher_weights=[3, 1])
    fit(module, callback, batches=loader(shuffle=False))
    assert_alike(module, expected)


def test_a_moving_average_follows_the_student():
    module, states = Calm(), []

    class Follow(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            states.append(copy.deepcopy(pl_module.state_dict()))

    expected = copy.deepcopy(module.state_dict())
    callback = KnowledgeDistillation("ema", ema_decay=0.75)
    fit(module, callback, Follow(), max_epochs=1)
    for state in states:
        expected = {name: 0.75 * value + 0.25 * state[name] for name, value in expected.items()}
    for name, value in callback.copies["ema"].state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_the_teacher_stays_what_it_was(make):
    module, callback = Tiny(), make()
    before = copy.deepcopy(module.state_dict())
    teachers = [one for one in callback._given if isinstance(one, nn.Module)]
    weights = [copy.deepcopy(one.state_dict()) for one in teachers]
    run = fit(module, callback)
    assert list(module.state_dict()) == list(before)
    assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())
    trained = {id(p) for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in module.parameters()}
    for one, state in zip(teachers, weights, strict=True):
        assert not one.training
        assert one[1].inplace, "put back"
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in one.modules())
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
        assert all(parameter.grad is None for parameter in one.parameters())
    if "self" in callback.copies:
        assert all(torch.equal(value, before[name]) for name, value in callback.copies["self"].state_dict().items())


def test_nothing_of_it_stays_on_the_module(make):
    module = Tiny()
    fit(module, make())
    fit(Tiny(), make())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert "training_step" not in module.__dict__


def test_an_interrupted_run_ends_like_a_whole_one(make, tmp_path):
    whole = everything(run_to_the_end(Tiny(), make()))
    path = run_until(5, tmp_path, Tiny(), make())
    assert_bitwise_equal(everything(run_to_the_end(Tiny(), make(), ckpt_path=path)), whole)


def test_also_with_accumulated_gradients(make, tmp_path):
    settings = {"accumulate_grad_batches": 3, "max_epochs": 4}
    whole = everything(run_to_the_end(Tiny(), make(), **settings))
    path = run_until(4, tmp_path, Tiny(), make(), **settings)
    assert_bitwise_equal(everything(run_to_the_end(Tiny(), make(), ckpt_path=path, **settings)), whole)


def test_also_with_a_gradient_scaler(make, tmp_path):
    def settings():
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))]}

    whole = everything(run_to_the_end(Tiny(), make(), **settings()))
    path = run_until(5, tmp_path, Tiny(), make(), **settings())
    assert_bitwise_equal(everything(run_to_the_end(Tiny(), make(), ckpt_path=path, **settings())), whole)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precision(make, precision):
    module = Tiny()
    run = fit(module, make(), precision=precision, batches=loader() if precision == "bf16-mixed" else None)
    terms = {name: value for name, value in run.logged_metrics.items() if name.startswith("distillation/")}
    assert terms
    assert all(value.isfinite() for value in terms.values())


def test_checkpoint_holds_the_student_alone(make, tmp_path):
    path = run_until(5, tmp_path, Tiny(), make())
    checkpoint = torch.load(path, weights_only=True)
    assert list(checkpoint["state_dict"]) == list(Tiny().state_dict())
    Tiny.load_from_checkpoint(path)


def test_works_in_the_trainer_of_lightning(make):
    run = fit(TinyOfLightning(), make(), package=lightning.pytorch)
    assert any(name.startswith("distillation/") for name in run.logged_metrics)


def test_projections_are_trained_beside_the_module():
    callback = KnowledgeDistillation(teacher(), [Hint([("body.3", "0")])])
    found = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            found.append([parameter.detach().clone() for parameter in callback._distiller.learned.parameters()])

    fit(Tiny(), Look(), callback)
    assert not torch.equal(found[0][0], found[-1][0])


def test_label_free_does_not_call_the_training_step():
    class Unlabelled(Tiny):
        def training_step(self, batch, batch_idx):
            raise AssertionError("called")

    module, before = Unlabelled(), copy.deepcopy(Unlabelled().state_dict())
    run = fit(module, KnowledgeDistillation(teacher(), task_weight=0))
    assert "distillation/task" not in run.logged_metrics
    assert not torch.equal(module.state_dict()["head.weight"], before["head.weight"])


def test_what_has_no_label_counts_for_the_teacher_alone(tmp_path):
    features, labels = torch.randn(8, 8), torch.full((8,), -100)
    module = Tiny()
    fit(module, KnowledgeDistillation(teacher()), batches=DataLoader(TensorDataset(features, labels), 4))
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("returned", ["dict", "none", "without batch_idx"])
def test_what_a_training_step_may_return(returned):
    class Returning(Tiny):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("train_loss", loss)
            return {"loss": loss, "more": 1} if returned == "dict" else None

    class Short(Tiny):
        def training_step(self, batch):
            return self.loss(batch)

    module = Short() if returned == "without batch_idx" else Returning()
    before = copy.deepcopy(module.state_dict())
    says_so = pytest.warns(UserWarning, match="returned `None`") if returned == "none" else nullcontext()
    with says_so:
        run = fit(module, KnowledgeDistillation(teacher()))
    moved = not torch.equal(module.head.weight, before["head.weight"])
    assert moved == (returned != "none")
    assert ("distillation/task" in run.logged_metrics) == moved


class Manual(Tiny):
    """Two losses a step; the second backward is that of the classifier."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.losses = []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(sum(p.square().sum() for p in self.head.parameters()))
        self.manual_backward(self.loss(batch))
        optimizer.step()

    def manual_backward(self, loss, *args, **kwargs):
        self.losses.append(loss.item())
        super().manual_backward(loss, *args, **kwargs)


def test_manual_optimization():
    module = Manual()
    run = fit(module, KnowledgeDistillation(teacher(), backward=1))
    logged = run.logged_metrics
    total = 0.3 * logged["distillation/task"] + logged["distillation/soft_targets"]
    assert module.losses[-1] == pytest.approx(float(total), rel=1e-5)


def test_composes_with_pruning_and_quantization():
    module = Tiny()
    window = {"start": 2, "end": 8, "every": 3}
    callbacks = [
        KnowledgeDistillation("self"),
        GradualPruning(0.75, **window),
        QuantizationAwareTraining(start=4),
        EMAWeightAveraging(),
    ]
    fit(module, *callbacks, precision="bf16-mixed")
    assert (module.body[0].weight == 0).float().mean() > 0.5
    assert not hasattr(callbacks[0].copies["self"].body[0], "weight_quantizer")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # raised inside torch.compile
@pytest.mark.parametrize("losses", [[SoftTargets()], [Hint([("body.3", "0")])]])
def test_compiled(losses):
    class Compiled(Tiny):
        def __init__(self):
            super().__init__()
            self.body = torch.compile(self.body, backend="eager")

    for module in (Compiled(), torch.compile(Tiny(), backend="eager")):
        torch.compiler.reset()
        run = fit(module, KnowledgeDistillation(teacher(), losses))
        assert run.logged_metrics[f"distillation/{losses[0].name}"] > 0


def test_logs_each_term(tmp_path):
    run = fit(
        Tiny(),
        KnowledgeDistillation(teacher(), [LogitMSE(), LogitMSE(weight=2.0)]),
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
    )
    logged = run.logged_metrics
    assert logged["distillation/logit_mse_2"] == pytest.approx(2 * float(logged["distillation/logit_mse"]))


class Dictionary(Tiny):
    """Gives its logits under a name of its own, as does ``Answers``."""

    def forward(self, features):
        return {"answers": super().forward(features), "features": features}

    def loss(self, batch):
        return F.cross_entropy(self(batch[0])["answers"], batch[1])


class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = teacher()

    def forward(self, features):
        return {"answers": self.layer(features)}


def test_logits_under_another_name_and_from_a_cache(tmp_path):
    live = _losses(Answers(), loader(shuffle=False))
    cache = LogitCache(tmp_path, loader().dataset, Answers(), logits="answers", dtype="float32")
    cache.fill(loader(shuffle=False))
    assert _losses(cache, cache.loader(loader(shuffle=False))) == pytest.approx(live, rel=1e-5)


def _losses(one, batches):
    found = []

    class Look(pl.Callback):
        def on_train_batch_end(self, run, pl_module, outputs, batch, batch_idx):
            found.append(float(run.logged_metrics["distillation/logit_mse"]))

    module = Dictionary()
    module.body[2] = nn.Identity()
    fit(module, KnowledgeDistillation(one, [LogitMSE()], logits="answers"), Look(), batches=batches)
    assert len(found) == 16
    return found


@NO_LOADER
def test_an_encoder_and_decoder_reads_its_labels_but_the_teacher_is_asked_without():
    def t5(layers):
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 20, "num_layers": layers}
        return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **sizes))

    rows = [{"input_ids": torch.arange(1, 6), "attention_mask": torch.ones(5, dtype=torch.long)} for _ in range(4)]
    batches = DataLoader([row | {"labels": torch.tensor([3, 4, -100])} for row in rows], 2)
    for task_weight in (0.3, 0):
        module = TransformerModule(t5(1), task="seq2seq", schedule="constant")
        callback = KnowledgeDistillation(t5(2), [SoftTargets()], task_weight)
        run = fit(module, callback, batches=batches, limit_val_batches=0)
        assert run.logged_metrics["distillation/soft_targets"] > 0


@NO_LOADER
def test_a_fused_projection_of_the_teacher_is_picked_apart():
    def bert():
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes))

    def gpt2():
        return GPT2ForSequenceClassification(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=4, pad_token_id=0))

    rows = [{"input_ids": torch.arange(1, 6), "labels": torch.tensor(1)} for _ in range(4)]
    module = TransformerModule(bert(), schedule="constant")
    losses = [AttentionMaps(layers=[1]), MiniLMRelations(heads=2)]
    run = fit(module, KnowledgeDistillation(gpt2(), losses), batches=DataLoader(rows, 2), limit_val_batches=0)
    assert run.logged_metrics["distillation/attention_maps"] > 0
    assert run.logged_metrics["distillation/mini_lm_relations"] > 0


@pytest.mark.parametrize("to", ["torchao-int8", "bitsandbytes-nf4", "bitsandbytes-int8"])
def test_a_teacher_of_few_bits(to):
    dense = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    small = convert(dense, to, include="*")
    run = fit(Tiny(), KnowledgeDistillation(small, [LogitMSE()]))
    assert run.logged_metrics["distillation/logit_mse"].isfinite()


def test_a_teacher_of_another_type_than_the_student():
    one = teacher()
    run = fit(Tiny(), KnowledgeDistillation(one, [LogitMSE(), Hint([("body.3", "0")])], teacher_dtype="bfloat16"))
    assert one[0].weight.dtype == torch.float32, "a copy was cast"
    assert run.logged_metrics["distillation/hint"].isfinite()
