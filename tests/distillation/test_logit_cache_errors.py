"""What a cache refuses, in words that say the way out."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.distillation.indexed import IndexedBatch
from lightning_compress.distillation.logit_cache import LogitCache
from lightning_compress.distillation.watch import Call, Place

INPUTS = torch.arange(40.0).view(10, 4)


def data(inputs=INPUTS):
    return TensorDataset(inputs, torch.zeros(len(inputs), dtype=torch.int64))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.fixture
def cache(tmp_path, teacher):
    cache = LogitCache(tmp_path / "cache", data(), teacher)
    cache.fill(DataLoader(data(), batch_size=4))
    return cache


class Endless(IterableDataset):
    def __iter__(self):
        yield from range(3)


class Augmented(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return INPUTS[index] + torch.rand(1)


class Table(Dataset):
    """Has whole batches by lists of indices, and a lock, which cannot be pickled."""

    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": Endless()}, r"dataset=Endless\): its samples have no indices"),
        ({"dataset": iter([1])}, r"dataset=list_iterator\): its samples have no indices"),
        ({"dataset": []}, "the data set is empty"),
        ({"dataset": Augmented()}, "sample 0 of the data set differs when it is read again, by random augmentation"),
        ({"dataset": Table(one for one in [1])}, "a generator in the data can be neither compared nor stored"),
        ({"teacher": "bert"}, r"teacher=str\): expected a module"),
        ({"top_k": 0}, r"top_k=0\): expected a positive number of classes"),
        ({"top_k": True}, r"top_k=True\): expected a positive number of classes"),
        ({"dtype": "int8"}, r"dtype='int8'\): expected one of float16, float32"),
    ],
)
def test_bad_arguments(tmp_path, teacher, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        LogitCache(**{"folder": tmp_path / "cache", "dataset": data(), "teacher": teacher} | arguments)


def changed(index):
    inputs = INPUTS.clone()
    inputs[index] += 1
    return data(inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"teacher": nn.Linear(4, 3)},
            "is stale: it was filled by another teacher, or this one's weights changed since",
        ),
        ({"dataset": data(INPUTS[:9])}, "its data had 10 samples, and this data set has 9"),
        ({"dataset": changed(7)}, r"sample 7 of the data set is another than it was \(1 differ of the 10"),
        ({"dataset": data(INPUTS.flip(0))}, r"sample 0 of the data set is another than it was \(10 differ"),
        ({"top_k": 2}, "it was filled with top_k=None, and this is top_k=2"),
        ({"dtype": "float32"}, "it was filled with dtype='float16', and this is dtype='float32'"),
    ],
)
def test_a_stale_cache_says_what_changed(tmp_path, cache, teacher, arguments, message):
    with pytest.raises(CheckpointError, match=message):
        LogitCache(**{"folder": tmp_path / "cache", "dataset": data(), "teacher": teacher} | arguments)


def test_a_teacher_that_learnt_since_is_noticed(tmp_path, cache, teacher):
    nn.init.zeros_(teacher.bias)
    with pytest.raises(CheckpointError, match=r"Delete the folder, or name another"):
        LogitCache(tmp_path / "cache", data(), teacher)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cache.json", "{", "cache.json is damaged"),
        ("cache.json", "[]", "cache.json is damaged"),
        ("cache.json", '{"format": "lightning_compress/logits/1"}', "cache.json is damaged"),
        ("cache.json", '{"format": "tomorrow"}', "is of format 'tomorrow'; this version reads"),
        ("values.bin", "", "values.bin is shorter than cache.json says"),
    ],
)
def test_damaged_files(tmp_path, teacher, name, content, message):
    (tmp_path / "cache" / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        LogitCache(tmp_path / "cache", data(), teacher)


def test_damaged_row_ends(tmp_path, teacher):
    sequences = TensorDataset(torch.randn(4, 5, 4), torch.zeros(4))
    cache = LogitCache(tmp_path / "cache", sequences, teacher)
    cache.fill(DataLoader(sequences))
    (tmp_path / "cache" / "ends.bin").write_bytes(bytes(32))
    batch = next(iter(cache.loader(DataLoader(sequences))))
    with pytest.raises(CheckpointError, match=r"ends.bin is damaged: delete the folder"):
        cache.observe(Call((batch.batch[0],), {}, None), batch)


def test_foreign_folders(tmp_path, teacher):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is no cache of logits: it holds 'notes.txt' and no cache.json"):
        LogitCache(tmp_path, data(), teacher)
    with pytest.raises(CheckpointError, match=r"notes.txt is no cache of logits"):
        LogitCache(tmp_path / "notes.txt", data(), teacher)


def test_a_cache_that_is_not_full(tmp_path, teacher):
    cache = LogitCache(tmp_path / "cache", data(), teacher)
    message = r"holds logits of 0 of 10 samples. Compute the rest first: cache.fill\("
    batch = IndexedBatch([INPUTS], torch.arange(10))
    for ask in (
        lambda: cache.loader(DataLoader(data())),
        lambda: cache.connect(teacher, teacher),
        lambda: cache.observe(Call((INPUTS,), {}, None), batch),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ask()
    with pytest.raises(ConfigurationError, match=r"Give its teacher: LogitCache\(folder, dataset, teacher\)"):
        LogitCache(tmp_path / "cache", data()).fill(DataLoader(data()))


def test_loaders_that_do_not_fit(cache):
    for loader, message in (
        (data(), "takes a DataLoader; this is a TensorDataset"),
        (cache.loader(DataLoader(data())), r"came from cache.loader already"),
        (DataLoader(changed(0)), "the loader's data set is not the one that the cache was made for"),
        (DataLoader(Endless()), "its samples have no indices"),
        (DataLoader(data(), batch_size=None), "makes whole batches itself"),
        (
            DataLoader(data(), collate_fn=lambda items: torch.rand(2)),
            "collate_fn makes another batch of the same samples",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            cache.loader(loader)


def test_a_loader_of_another_class_that_cannot_be_built_anew(cache):
    class Own(DataLoader):
        def __init__(self, where):
            super().__init__(where)

    with pytest.raises(ConfigurationError, match=r"a Own cannot be built anew from its attributes .*plain DataLoader"):
        cache.loader(Own(data()))


def test_no_batch_size_to_fill_with(tmp_path, teacher):
    cache = LogitCache(tmp_path / "cache", data(), teacher)
    with pytest.raises(ConfigurationError, match=r"batch_size=None: expected a positive number"):
        cache.fill(DataLoader(data(), batch_sampler=[[0, 1]]))
    with pytest.raises(ConfigurationError, match=r"batch_size=-1: expected a positive number"):
        cache.fill(DataLoader(data()), batch_size=-1)
    cache.fill(DataLoader(data(), batch_sampler=[[0, 1]]), batch_size=5)
    assert cache.is_full


def test_a_batch_without_indices(cache):
    with pytest.raises(ConfigurationError, match=r"this is a list: train on cache.loader\(DataLoader\(...\)\)"):
        cache.observe(Call((INPUTS,), {}, None), [INPUTS])


def test_a_call_for_part_of_the_batch(cache):
    batch = IndexedBatch([INPUTS[:4]], torch.arange(4))
    with pytest.raises(ConfigurationError, match="called with 2 samples and the batch has 4"):
        cache.observe(Call((INPUTS[:2],), {}, torch.zeros(2, 3)), batch)


def test_features_are_not_there(cache):
    cache.watch([])
    with pytest.raises(ConfigurationError, match=r"holds logits alone, and a loss looks at 'encoder.0'"):
        cache.watch([Place("encoder.0", "output", None)])


class Gives(nn.Module):
    """A teacher whose output is what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, attention_mask=None):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (lambda x: {"hidden": x}, {}, "gives no logits for 10 samples"),
        (lambda x: x.sum(1), {}, r"gives logits of shape \(10,\) for 10 samples"),
        (lambda x: x[:3], {}, r"gives logits of shape \(3, 4\) for 10 samples"),
        (lambda x: x * torch.nan, {}, "logits that are no numbers for samples 0 to 9"),
        (lambda x: x + torch.inf, {}, "logits that are no numbers"),
        (lambda x: x * 1e5, {}, "logits beyond float16 .*dtype='float32'"),
        (lambda x: x, {"top_k": 4}, "top_k=4: the teacher has 4 classes"),
        (lambda x, y=[]: x[:, : 2 + len(y.append(0) or y) // 2], {}, None),
    ],
)
def test_outputs_that_cannot_be_stored(tmp_path, function, settings, message):
    cache = LogitCache(tmp_path / "cache", data(), Gives(function), **settings)
    if message is None:
        with pytest.raises(ConfigurationError, match=r"a cache holds one kind"):
            cache.fill(DataLoader(data(), batch_size=4))
        return
    with pytest.raises(ConfigurationError, match=message):
        cache.fill(DataLoader(data(), batch_size=10))
    assert not (tmp_path / "cache" / "cache.json").exists()


def test_a_class_that_is_ruled_out_stays_so(tmp_path):
    def ruled_out(x):
        return torch.cat([x, x[:, :1] - torch.inf], dim=1)

    cache = LogitCache(tmp_path / "cache", data(), Gives(ruled_out))
    cache.fill(DataLoader(data(), batch_size=4))
    answer = cache.observe(Call((INPUTS,), {}, None), IndexedBatch([INPUTS], torch.arange(10)))
    assert torch.equal(answer.output, ruled_out(INPUTS))


def rows(items):
    x = torch.stack([one for one, _ in items])
    return {"x": x, "attention_mask": torch.ones(len(x), x.shape[1], dtype=torch.int64)}


def test_tokens_that_differ_from_those_that_were_cached(tmp_path):
    sequences = TensorDataset(torch.randn(4, 5, 3), torch.zeros(4))
    cache = LogitCache(tmp_path / "cache", sequences, Gives(lambda x: x))
    cache.fill(DataLoader(sequences, batch_size=2, collate_fn=rows))
    batch = next(iter(cache.loader(DataLoader(sequences, batch_size=2, collate_fn=rows))))
    batch.batch["attention_mask"][1, 3:] = 0
    with pytest.raises(
        ConfigurationError, match=r"sample 1 has 3 tokens in this batch and had 5 .*must cut and mask alike"
    ):
        cache.observe(Call((), batch.batch, None), batch)


def test_a_mask_of_another_length_than_the_logits(tmp_path):
    sequences = TensorDataset(torch.randn(4, 5, 3), torch.zeros(4))
    cache = LogitCache(tmp_path / "cache", sequences, Gives(lambda x: x[:, 1:]))
    with pytest.raises(ConfigurationError, match="logits for 4 tokens and the attention_mask has 5"):
        cache.fill(DataLoader(sequences, batch_size=2, collate_fn=rows))


def test_the_count_is_written_after_the_data(tmp_path, cache):
    state = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert (state["samples"], state["rows"]) == (10, 10)
    assert sorted(file.name for file in (tmp_path / "cache").iterdir() if file.name != "lock") == [
        "cache.json",
        "values.bin",
    ]
