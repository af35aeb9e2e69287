import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import transformers
import yaml
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.data import DataLoader

from lightning_compress.core.errors import ConfigurationError
from lightning_compress.modules import TransformerModule, collate_for

VOCABULARY = 64
ENCODER = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
DECODER = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
}
DECODER |= {"bos_token_id": 2, "eos_token_id": 3}
ENCODER_DECODER = {
    "model_type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_heads": 2,
}
ENCODER_DECODER |= {"num_layers": 2, "decoder_start_token_id": 0}
CONFIGURATIONS = {
    "classification": {**ENCODER, "num_labels": 3},
    "masked-lm": ENCODER,
    "causal-lm": DECODER,
    "seq2seq": ENCODER_DECODER,
}
TASKS = list(CONFIGURATIONS)
LANGUAGE_TASKS = TASKS[1:]


def build(task="classification", **settings):
    torch.manual_seed(0)
    return TransformerModule(dict(CONFIGURATIONS[task]), task, **settings)


def make_batch(task, rows, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, tokens), generator=generator)
    if task == "classification":
        return {"input_ids": ids, "labels": torch.randint(0, 3, (rows,), generator=generator)}
    labels = torch.randint(4, VOCABULARY, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.3] = -100
    return {"input_ids": ids, "labels": labels}


def loader(batches):
    return DataLoader(batches, batch_size=None)


def trainer(path, **settings):
    defaults = {
        "default_root_dir": path,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**defaults | settings)


def fit(path, module, batches, **settings):
    """A finished trainer; the training batches are the validation batches too."""
    fitted = trainer(path, **settings)
    fitted.fit(module, batches, batches)
    return fitted


@torch.no_grad()
def logits_of(module, batch):
    module.eval()
    return module.model(**batch).logits.double().numpy()


def token_losses(task, logits, labels):
    """Cross-entropy of every token that counts, in numpy."""
    labels = labels.numpy()
    if task == "causal-lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    counted = labels != -100
    return -np.take_along_axis(log_probabilities, np.where(counted, labels, 0)[..., None], axis=-1)[..., 0][counted]


# Metrics


def test_classification_metrics_equal_sklearn_over_unequal_batches(tmp_path):
    module = build()
    batches = [make_batch("classification", rows, 6, seed=rows) for rows in (7, 2, 12)]
    logged = trainer(tmp_path).validate(module, loader(batches), verbose=False)[0]
    logits = np.concatenate([logits_of(module, batch) for batch in batches])
    labels = np.concatenate([batch["labels"].numpy() for batch in batches])
    predicted = logits.argmax(-1)
    assert logged["val_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert logged["val_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert logged["val_mcc"] == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-6)
    each = token_losses("classification", logits[:, None], torch.from_numpy(labels)[:, None])
    assert logged["val_loss"] == pytest.approx(each.mean(), rel=1e-5)


def test_regression_metrics_equal_numpy(tmp_path):
    module = TransformerModule(dict(ENCODER), num_labels=1)
    batches = [make_batch("classification", rows, 6, seed=rows) for rows in (5, 3)]
    for batch in batches:
        batch["labels"] = batch["labels"] + 0.5 * torch.rand(len(batch["labels"]))
    logged = trainer(tmp_path).validate(module, loader(batches), verbose=False)[0]
    predicted = np.concatenate([logits_of(module, batch)[:, 0] for batch in batches])
    target = np.concatenate([batch["labels"].numpy() for batch in batches])
    assert logged["val_mse"] == pytest.approx(np.square(predicted - target).mean(), rel=1e-5)
    assert logged["val_loss"] == pytest.approx(logged["val_mse"], rel=1e-5)
    assert logged["val_pearson"] == pytest.approx(np.corrcoef(predicted, target)[0, 1], abs=1e-5)


@pytest.mark.parametrize("task", LANGUAGE_TASKS)
def test_perplexity_is_over_all_tokens_of_unequal_batches(task, tmp_path):
    module = build(task)
    batches = [make_batch(task, rows, tokens, seed=tokens) for rows, tokens in [(2, 11), (5, 3), (1, 6)]]
    logged = trainer(tmp_path).test(module, loader(batches), verbose=False)[0]
    each = np.concatenate([token_losses(task, logits_of(module, batch), batch["labels"]) for batch in batches])
    assert logged["test_perplexity"] == pytest.approx(np.exp(each.mean()), rel=1e-4)
    assert logged["test_loss"] == pytest.approx(each.mean(), rel=1e-5)


def test_perplexity_stays_finite_when_a_probability_underflows(tmp_path):
    module = build("masked-lm")
    module.model.cls.predictions.bias.data[0] = 120.0
    batch = make_batch("masked-lm", 2, 8)
    batch["labels"][:, 1:] = 0
    batch["labels"][0, 0] = 5
    each = token_losses("masked-lm", logits_of(module, batch), batch["labels"])
    assert each.max() > 100
    logged = trainer(tmp_path).validate(module, loader([batch]), verbose=False)[0]
    assert logged["val_perplexity"] == pytest.approx(np.exp(each.mean()), rel=1e-4)


def test_a_batch_without_labelled_tokens_does_not_spoil_the_epoch(tmp_path):
    module = build("masked-lm")
    batch, empty = make_batch("masked-lm", 2, 8), make_batch("masked-lm", 2, 8, seed=1)
    empty["labels"].fill_(-100)
    with_empty, without = (
        trainer(tmp_path).validate(module, loader(batches), verbose=False)[0] for batches in ([batch, empty], [batch])
    )
    assert with_empty == without
    assert math.isfinite(without["val_loss"])


def test_a_diverged_loss_is_not_hidden(tmp_path):
    module = build()
    module.model.classifier.bias.data.fill_(math.nan)
    batches = [make_batch("classification", 4, 6)]
    assert math.isnan(trainer(tmp_path).validate(module, loader(batches), verbose=False)[0]["val_loss"])


def test_each_loader_has_metrics_of_its_own(tmp_path):
    module = build()
    pair = [[make_batch("classification", rows, 6, seed=rows)] for rows in (9, 4)]
    together = trainer(tmp_path).validate(module, [loader(batches) for batches in pair], verbose=False)
    for index, batches in enumerate(pair):
        for name, value in trainer(tmp_path).validate(module, loader(batches), verbose=False)[0].items():
            assert together[index][f"{name}/dataloader_idx_{index}"] == value


def test_the_sanity_check_leaves_nothing_in_the_metrics(tmp_path):
    module = build(learning_rate=1e-30, weight_decay=0.0)
    batches = [make_batch("classification", rows, 6, seed=rows) for rows in (7, 4)]
    fitted = fit(tmp_path, module, loader(batches), max_epochs=2, num_sanity_val_steps=1)
    for name, value in trainer(tmp_path).validate(module, loader(batches), verbose=False)[0].items():
        assert fitted.callback_metrics[name] == pytest.approx(value)


@pytest.mark.parametrize("task", TASKS)
def test_validation_before_between_and_after_fits(task, tmp_path):
    module = build(task, learning_rate=1e-30, weight_decay=0.0)
    batches = loader([make_batch(task, rows, 6, seed=rows) for rows in (7, 4)])
    before = trainer(tmp_path).validate(module, batches, verbose=False)[0]
    for _ in range(2):
        fitted = fit(tmp_path, module, batches, max_epochs=1)
        after = trainer(tmp_path).validate(module, batches, verbose=False)[0]
        for name, value in before.items():
            assert fitted.callback_metrics[name] == pytest.approx(value)
            assert after[name] == pytest.approx(value)


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_metrics_of_two_ranks_merge_to_those_of_one(task, tmp_path):
    batches = [make_batch(task, rows, tokens, seed=rows) for rows, tokens in [(7, 3), (2, 9)]]
    modules = []
    for chosen in (batches, batches[:1], batches[1:]):
        modules.append(build(task).eval())
        modules[-1].log = lambda *_, **__: None
        for index, batch in enumerate(chosen):
            modules[-1].validation_step(batch, index)
    both, first, second = (module._metrics["val_0"] for module in modules)
    for name, metric in both.items():
        first[name].merge_state(second[name])
        torch.testing.assert_close(first[name].compute(), metric.compute())


# Training


@pytest.mark.parametrize("task", TASKS)
def test_a_tiny_fit_learns_one_batch(task, tmp_path):
    module = build(task, learning_rate=1e-2, warmup=2)
    batch = make_batch(task, 4, 6)
    before = module.model(**batch).loss.item()
    fitted = fit(tmp_path, module, loader([batch]), max_steps=15)
    assert fitted.callback_metrics["val_loss"] < 0.7 * before


@pytest.mark.parametrize("task", TASKS)
def test_the_training_loss_is_the_models_own(task, tmp_path):
    module = build(task, learning_rate=1e-30, weight_decay=0.0).eval()
    batch = make_batch(task, 4, 6)
    with pytest.warns(UserWarning, match="in eval mode"):
        fitted = fit(tmp_path, module, loader([batch]), max_steps=1)
    assert fitted.callback_metrics["train_loss"] == pytest.approx(module.model(**batch).loss.item())


def learning_rates(path, steps, **settings):
    class Record(pl.Callback):
        def __init__(self):
            self.rates = {}

        def on_train_batch_end(self, trainer, *_):
            self.rates.setdefault(trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"])

    record = Record()
    batches = loader([make_batch("classification", 2, 4)] * 2 * steps)
    module = build(learning_rate=1.0, **settings)
    # Two batches to an optimizer step: the schedule has to count steps.
    fit(path, module, batches, max_epochs=1, accumulate_grad_batches=2, limit_val_batches=0, callbacks=[record])
    return [record.rates[step] for step in range(1, steps + 1)]


@pytest.mark.parametrize("warmup", [2, 0.25])
@pytest.mark.parametrize(
    ("schedule", "after_warmup"),
    [
        ("linear", lambda share: 1 - share),
        ("cosine", lambda share: 0.5 * (1 + math.cos(math.pi * share))),
        ("constant", lambda share: 1.0),
    ],
)
def test_the_learning_rate_follows_its_formula(schedule, after_warmup, warmup, tmp_path):
    expected = [step / 2 if step < 2 else after_warmup((step - 2) / 6) for step in range(1, 9)]
    assert learning_rates(tmp_path, 8, schedule=schedule, warmup=warmup) == pytest.approx(expected)


def test_a_warmup_longer_than_the_run_warns(tmp_path):
    with pytest.warns(UserWarning, match="warmup=9 of 2 optimizer steps"):
        learning_rates(tmp_path, 2, warmup=9)


def test_an_endless_run_is_refused_unless_the_schedule_needs_no_length(tmp_path):
    endless = trainer(tmp_path, max_epochs=-1)
    for settings in ({}, {"schedule": "constant", "warmup": 0.1}):
        module = build(**settings)
        module.trainer = endless
        with pytest.raises(ConfigurationError, match="endless: set Trainer"):
            module.configure_optimizers()
    for settings in ({}, {"warmup": 3}):
        module = build(schedule="constant", **settings)
        module.trainer = endless
        assert module.configure_optimizers()["lr_scheduler"]["interval"] == "step"


def test_an_iterable_loader_without_max_steps_is_endless(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([make_batch("classification", 2, 4)])

    with pytest.raises(ConfigurationError, match="endless"):
        fit(tmp_path, build(), loader(Stream()), max_epochs=1)


def test_manual_optimization_schedules_nothing(tmp_path):
    module = build()
    module.automatic_optimization = False
    module.trainer = trainer(tmp_path, max_epochs=-1)
    assert isinstance(module.configure_optimizers(), torch.optim.AdamW)


@pytest.mark.parametrize("task", TASKS)
def test_weight_decay_leaves_out_vectors(task, tmp_path):
    module = build(task, weight_decay=0.3, schedule="constant", warmup=0)
    frozen = next(module.model.parameters()).requires_grad_(False)
    module.trainer = trainer(tmp_path)
    decayed, undecayed = module.configure_optimizers()["optimizer"].param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.3, 0.0)
    trainable = [parameter for parameter in module.model.parameters() if parameter is not frozen]
    for group, judged in [
        (decayed, [parameter for parameter in trainable if parameter.ndim > 1]),
        (undecayed, [parameter for parameter in trainable if parameter.ndim <= 1]),
    ]:
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in judged]


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", False)])
def test_gradients_can_be_clipped_at_every_precision(precision, fused, tmp_path):
    batches = loader([make_batch("classification", 2, 4)])
    fitted = fit(tmp_path, build(), batches, max_steps=1, precision=precision, gradient_clip_val=1.0)
    assert fitted.optimizers[0].defaults["fused"] is fused


def test_predictions_are_logits(tmp_path):
    module = build()
    batch = make_batch("classification", 3, 6)
    del batch["labels"]
    predicted = trainer(tmp_path).predict(module, loader([batch]))
    np.testing.assert_allclose(predicted[0].numpy(), logits_of(module, batch), rtol=1e-6)


def test_a_batch_without_labels_cannot_train(tmp_path):
    batch = make_batch("classification", 3, 6)
    del batch["labels"]
    with pytest.raises(ConfigurationError, match="needs 'labels'"):
        fit(tmp_path, build(), loader([batch]), max_steps=1)


# Models and checkpoints


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_holds_the_models_keys_and_loads_by_itself(task, tmp_path):
    reference = build(task).model
    reference.save_pretrained(tmp_path / "model")
    module = TransformerModule(tmp_path / "model", task, learning_rate=1e-3)
    batch = make_batch(task, 3, 5)
    fit(tmp_path, module, loader([batch]), max_steps=1).save_checkpoint(tmp_path / "one.ckpt")

    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["model." + key for key in reference.state_dict()]
    weights = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
    reference.load_state_dict(weights, strict=True)

    # The folder is gone: the configuration in the checkpoint is enough.
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    loaded = TransformerModule.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert (loaded.task, loaded.learning_rate) == (task, 1e-3)
    assert loaded.hparams == module.hparams
    assert loaded.hparams["model"]["_name_or_path"] == str(tmp_path / "model")
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
    expected = reference.eval()(**batch).logits.detach().numpy()
    np.testing.assert_allclose(logits_of(loaded, batch), expected, rtol=1e-4, atol=1e-5)


class NamesakeOfBert(transformers.BertForSequenceClassification):
    """A class of the user's: its configuration alone would build another one."""


def test_an_object_that_only_the_user_can_build_is_asked_for(tmp_path):
    config = transformers.BertConfig(**CONFIGURATIONS["classification"])
    module = TransformerModule(NamesakeOfBert(config))
    module.trainer = trainer(tmp_path)
    module.trainer.strategy.connect(module)
    module.trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    with pytest.raises(ConfigurationError, match=r"NamesakeOfBert.*load_from_checkpoint\(path, model=...\)"):
        TransformerModule.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    loaded = TransformerModule.load_from_checkpoint(
        tmp_path / "own.ckpt", model=NamesakeOfBert(config), weights_only=True
    )
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_hyperparameters_are_plain_values_whatever_the_model_was():
    model = build().model
    module = TransformerModule(model)
    assert module.model is model
    assert module.hparams == module.hparams_initial
    assert module.hparams["model"]["model_type"] == "bert"
    assert not any(isinstance(value, torch.nn.Module) for value in module.hparams.values())


def test_a_half_precision_folder_is_loaded_in_single_precision(tmp_path):
    build().model.half().save_pretrained(tmp_path)
    assert TransformerModule(str(tmp_path)).model.dtype == torch.float32


def test_dropout_is_on_unless_part_of_the_model_is_in_eval_mode_on_purpose(tmp_path):
    build().model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not loaded.training
    for source in (tmp_path, loaded):
        assert all(module.training for module in TransformerModule(source).model.modules())
    loaded.bert.embeddings.eval()
    assert not TransformerModule(loaded).model.bert.embeddings.training


def test_num_labels_sets_the_head(tmp_path):
    transformers.BertModel(transformers.BertConfig(**ENCODER)).save_pretrained(tmp_path)
    assert TransformerModule(tmp_path, num_labels=5).model.classifier.out_features == 5


@pytest.mark.parametrize("model", [ENCODER, "folder/name"])
@pytest.mark.parametrize("warmup", [100, 0.1])
def test_yaml_keeps_whole_numbers_and_configurations(model, warmup, tmp_path):
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TransformerModule, "model")
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"model": {"model": model, "warmup": warmup}}))
    parsed = parser.parse_args(["--config", str(tmp_path / "settings.yaml")]).model
    assert parsed.model == model
    assert (parsed.warmup, type(parsed.warmup)) == (warmup, type(warmup))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "regression"}, r"task='regression'.*classification"),
        ({"schedule": "step"}, r"schedule='step'.*linear"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0"),
        ({"learning_rate": math.nan}, r"learning_rate=nan"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1"),
        ({"warmup": -1}, r"warmup=-1.*warmup=100"),
        ({"warmup": 1.5}, r"warmup=1.5.*warmup=0.1"),
        ({"warmup": True}, r"warmup=True"),
        ({"num_labels": 0}, r"num_labels=0"),
        ({"task": "masked-lm", "num_labels": 2}, r"num_labels=2: expected None"),
        ({"model": {"hidden_size": 16}}, r"'hidden_size': 16.*model_type"),
        ({"model": {"model_type": "brt"}}, r"'brt'.*known 'model_type'"),
        ({"model": torch.nn.Linear(2, 2)}, r"model='Linear'.*your own LightningModule"),
        ({"model": {**ENCODER, "problem_type": "multi_label_classification"}}, r"problem_type=.*one label"),
    ],
)
def test_bad_values_are_refused_in_the_constructor(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        TransformerModule(**{"model": dict(ENCODER)} | settings)


def test_a_model_of_another_task_or_width_is_refused():
    with pytest.raises(ConfigurationError, match=r"task='classification': expected \['masked-lm'\]"):
        TransformerModule(build("masked-lm").model)
    with pytest.raises(ConfigurationError, match=r"num_labels=2: expected None or 3"):
        TransformerModule(build().model, num_labels=2)


# Batches


def make_tokenizer(**special):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "##ly"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


SPECIAL = {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SENTENCES = ["good film", "very bad film", "good"]


def test_classification_batches_are_padded_to_the_longest(tmp_path):
    tokenizer = make_tokenizer(**SPECIAL)
    features = [{**tokenizer(text), "label": label} for text, label in zip(SENTENCES, [1, 0, 1], strict=True)]
    batch = collate_for("classification", tokenizer)(features)
    assert batch["input_ids"].tolist() == [[2, 5, 7, 3, 0], [2, 8, 6, 7, 3], [2, 5, 3, 0, 0]]
    assert batch["attention_mask"].sum(-1).tolist() == [4, 5, 3]
    assert batch["labels"].tolist() == [1, 0, 1]
    batches = DataLoader(features, batch_size=2, collate_fn=collate_for("classification", tokenizer))
    fitted = fit(tmp_path, build(), batches, max_epochs=1)
    assert fitted.global_step == 2


def test_masked_batches_ask_for_hidden_tokens_only():
    tokenizer = make_tokenizer(**SPECIAL)
    torch.manual_seed(0)
    features = [tokenizer(text) for text in SENTENCES]
    batch = collate_for("masked-lm", tokenizer, mlm_probability=1.0)(features)
    plain = tokenizer(SENTENCES, padding=True, return_tensors="pt")["input_ids"]
    words = plain > 4
    assert torch.equal(batch["labels"], plain.where(words, -100))
    assert torch.equal(batch["input_ids"][~words], plain[~words])
    assert (batch["input_ids"][words] == tokenizer.mask_token_id).any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_causal_batches_ask_for_every_token_even_an_eos_that_also_pads(side):
    tokenizer = make_tokenizer(pad_token="[SEP]", eos_token="[SEP]", padding_side=side)
    batch = collate_for("causal-lm", tokenizer)([tokenizer(text) for text in SENTENCES])
    for text, labels in zip(SENTENCES, batch["labels"], strict=True):
        assert labels[labels != -100].tolist() == tokenizer(text)["input_ids"]


def test_causal_batches_keep_labels_of_their_own():
    tokenizer = make_tokenizer(**SPECIAL)
    features = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    assert collate_for("causal-lm", tokenizer)(features)["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_sequence_to_sequence_batches_pad_labels_apart():
    tokenizer = make_tokenizer(**SPECIAL)
    features = [{"input_ids": [5], "labels": [6, 7]}, {"input_ids": [5, 6, 7], "labels": [8]}]
    batch = collate_for("seq2seq", tokenizer)(features)
    assert batch["input_ids"].tolist() == [[5, 0, 0], [5, 6, 7]]
    assert batch["labels"].tolist() == [[6, 7], [8, -100]]


@pytest.mark.parametrize(
    ("task", "special", "settings", "message"),
    [
        ("classification", {}, {}, r"pad token; try tokenizer.pad_token = tokenizer.eos_token"),
        ("masked-lm", {"pad_token": "[PAD]"}, {}, r"mask token; set tokenizer.mask_token"),
        ("masked-lm", SPECIAL, {"mlm_probability": 0.0}, r"mlm_probability=0.0"),
        ("tagging", SPECIAL, {}, r"task='tagging'"),
    ],
)
def test_a_collate_that_cannot_work_is_refused(task, special, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        collate_for(task, make_tokenizer(**special), **settings)
