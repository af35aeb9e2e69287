"""The judge is the teacher, asked live."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.data import _update_dataloader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, SequentialSampler, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_compress.core import CheckpointError
from lightning_compress.distillation import logit_writer
from lightning_compress.distillation.logit_cache import IndexedBatch, LogitCache
from lightning_compress.distillation.watch import Call

VOCABULARY = 50


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(37, 6, generator=generator), torch.arange(37) % 5)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 5))


class Sentences(Dataset):
    """Token ids of ragged lengths."""

    def __init__(self, count=12):
        generator = torch.Generator().manual_seed(2)
        lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
        self.rows = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index]}


def padded(items, *, left=False, extra=0):
    length = max(len(item["input_ids"]) for item in items) + extra
    ids = torch.zeros(len(items), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(items):
        count = len(item["input_ids"])
        place = slice(length - count, length) if left else slice(0, count)
        ids[row, place], mask[row, place] = item["input_ids"], 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def padded_left(items):
    return padded(items, left=True, extra=2)


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(num_hidden_layers=2, initializer_range=0.5, pad_token_id=0, **shape)
    return LlamaForCausalLM(config).eval()


def filled(folder, data, teacher, collate=None, batch_size=8, **settings):
    cache = LogitCache(folder, data, teacher, **settings)
    cache.fill(DataLoader(data, batch_size=batch_size, collate_fn=collate))
    return cache


def answer(cache, batch):
    """As the distiller asks: after the student's call with the batch's inputs."""
    inner = batch.batch
    call = Call((), inner, None) if isinstance(inner, dict) else Call((inner[0],), {}, None)
    return cache.observe(call, batch).output


@torch.no_grad()
def live(teacher, batch):
    inner = batch.batch
    if isinstance(inner, dict):
        return teacher(input_ids=inner["input_ids"], attention_mask=inner["attention_mask"]).logits
    return teacher.eval()(inner[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-4), ("float32", 1e-6)])
def test_it_answers_as_the_teacher_does_whatever_the_order(tmp_path, data, teacher, dtype, tolerance):
    cache = filled(tmp_path / "cache", data, teacher.train(), dtype=dtype)
    seen = []
    for batch in cache.loader(DataLoader(data, batch_size=5, shuffle=True)):
        logits, expected = answer(cache, batch), live(teacher, batch)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
        student = torch.randn(len(logits), 5).log_softmax(1)
        terms = [F.kl_div(student, one.softmax(1), reduction="batchmean") for one in (logits, expected)]
        torch.testing.assert_close(*terms, rtol=1e-3, atol=1e-4)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(37))


def test_batches_are_those_of_the_loader_it_was_made_of(tmp_path, data, teacher):
    cache = filled(tmp_path / "cache", data, teacher)

    def loader():
        return DataLoader(data, batch_size=8, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(3))

    for own, plain in zip(cache.loader(loader()), loader(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(own.batch, plain, strict=True))
        assert torch.equal(data.tensors[0][own.indices], own.batch[0])


def test_filling_and_checking_draw_no_random_numbers(tmp_path, data, teacher):
    loader = DataLoader(data, batch_size=8, shuffle=True)
    before = torch.get_rng_state()
    cache = LogitCache(tmp_path / "cache", data, teacher)
    cache.fill(loader)
    cache.loader(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_answers_on_the_device_of_the_student(tmp_path, data, teacher):
    cache = filled(tmp_path / "cache", data, teacher.cuda())
    for batch in cache.loader(DataLoader(data, batch_size=5, pin_memory=True)):
        assert batch.batch[0].is_pinned()
        moved = pl.utilities.move_data_to_device(batch, torch.device("cuda"))
        logits = answer(cache, moved)
        assert (logits.device.type, moved.on_host.device.type) == ("cuda", "cpu")
        torch.testing.assert_close(logits, live(teacher, moved), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("collate", [padded, padded_left])
def test_tokens_are_found_again_under_other_padding(tmp_path, language_model, collate):
    data = Sentences()
    cache = filled(tmp_path / "cache", data, language_model, padded, dtype="float32")
    for batch in cache.loader(DataLoader(data, batch_size=5, shuffle=True, collate_fn=collate)):
        logits, mask = answer(cache, batch), batch.batch["attention_mask"].bool()
        torch.testing.assert_close(logits[mask], live(language_model, batch)[mask], rtol=1e-4, atol=1e-4)
        assert not logits[~mask].any()


@pytest.mark.parametrize("collate", [padded, padded_left])
def test_top_k_keeps_logits_and_probabilities_and_spreads_the_rest(tmp_path, language_model, collate):
    data = Sentences()
    cache = filled(tmp_path / "cache", data, language_model, padded, dtype="float32", top_k=7)
    for batch in cache.loader(DataLoader(data, batch_size=5, collate_fn=collate)):
        mask = batch.batch["attention_mask"].bool()
        logits, full = answer(cache, batch)[mask].numpy(), live(language_model, batch)[mask].numpy()
        probabilities = np.exp(full) / np.exp(full).sum(1, keepdims=True)  # numpy is the judge
        largest = np.argsort(-full, axis=1)[:, :7]
        np.testing.assert_allclose(
            np.take_along_axis(logits, largest, 1), np.take_along_axis(full, largest, 1), rtol=1e-3, atol=1e-3
        )
        rest = 1 - np.take_along_axis(probabilities, largest, 1).sum(1, keepdims=True)
        expected = np.broadcast_to(rest / (VOCABULARY - 7), probabilities.shape).copy()
        np.put_along_axis(expected, largest, np.take_along_axis(probabilities, largest, 1), 1)
        np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), expected, rtol=2e-3, atol=1e-6)


def test_top_k_takes_less_room(tmp_path, language_model):
    sizes = [
        filled(tmp_path / str(top_k), Sentences(), language_model, padded, top_k=top_k)
        and size_of(tmp_path / str(top_k))
        for top_k in (None, 4)
    ]
    tokens = sum(map(len, Sentences().rows))
    assert sizes == [tokens * VOCABULARY * 2, tokens * (5 * 2 + 4 * 2)]


def size_of(folder):
    return sum((folder / name).stat().st_size for name in ("values.bin", "classes.bin") if (folder / name).exists())


def test_without_a_mask_all_tokens_count(tmp_path):
    teacher, data = nn.Linear(3, 4), TensorDataset(torch.randn(6, 5, 3), torch.zeros(6))
    cache = filled(tmp_path / "cache", data, teacher, dtype="float32")
    batch = next(iter(cache.loader(DataLoader(data, batch_size=4))))
    torch.testing.assert_close(answer(cache, batch), live(teacher, batch))


def test_workers_bring_the_indices(tmp_path, data, teacher):
    cache = filled(tmp_path / "cache", data, teacher)
    settings = {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3, "timeout": 60}
    loader = cache.loader(DataLoader(data, batch_size=16, shuffle=True, **settings))
    assert {name: getattr(loader, name) for name in settings} == settings
    for batch in loader:
        torch.testing.assert_close(answer(cache, batch), live(teacher, batch), rtol=1e-3, atol=1e-3)


def test_a_spawned_worker_gets_all_that_it_needs_by_pickle(tmp_path, data, teacher):
    loader = filled(tmp_path / "cache", data, teacher).loader(DataLoader(data, batch_size=16))
    dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    assert collate(dataset.__getitems__([3, 1])).indices.tolist() == [3, 1]


def test_workers_fill_in_order(tmp_path, data, teacher):
    cache = LogitCache(tmp_path / "cache", data, teacher)
    cache.fill(DataLoader(data, batch_size=4, shuffle=True, num_workers=2))
    batch = next(iter(cache.loader(DataLoader(data, batch_size=37))))
    torch.testing.assert_close(answer(cache, batch), live(teacher, batch), rtol=1e-3, atol=1e-3)


class Pairs(BatchSampler):
    """A batch sampler of the user's own."""

    def __iter__(self):
        yield from ([index, 36 - index] for index in self.sampler if index < 18)


def test_a_batch_sampler_stays(tmp_path, data, teacher):
    sampler = Pairs(SequentialSampler(data), batch_size=2, drop_last=False)
    cache = LogitCache(tmp_path / "cache", data, teacher)
    cache.fill(DataLoader(data, batch_sampler=sampler))
    loader = cache.loader(DataLoader(data, batch_sampler=sampler))
    assert loader.batch_sampler is sampler
    assert [batch.indices.tolist() for batch in loader][:2] == [[0, 36], [1, 35]]


def test_lightning_can_put_a_distributed_sampler_in(tmp_path, data, teacher):
    cache = filled(tmp_path / "cache", data, teacher)
    loader = cache.loader(DataLoader(data, batch_size=4, shuffle=True))
    anew = _update_dataloader(loader, DistributedSampler(loader.dataset, 2, 1, shuffle=False))
    assert torch.cat([batch.indices for batch in anew]).tolist() == [*range(1, 37, 2), 0]  # padded by the sampler


class Fitted(pl.LightningModule):
    """Makes its loader inside the hook, where Lightning records how loaders are built, and asks the cache."""

    def __init__(self, cache, data):
        super().__init__()
        self.net, self.cache, self.data, self.seen = nn.Linear(6, 5), cache, data, []

    def train_dataloader(self):
        return self.cache.loader(DataLoader(self.data, batch_size=8, shuffle=True))

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, IndexedBatch)
        logits = self.net(batch.batch[0])
        target = self.cache.observe(Call((batch.batch[0],), {}, logits), batch).output
        self.seen += batch.indices.tolist()
        self.log("loss", loss := F.mse_loss(logits, target))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_fit_sees_every_sample_once_an_epoch(tmp_path, data, teacher):
    module = Fitted(filled(tmp_path / "cache", data, teacher), data)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(max_epochs=2, accelerator="cpu", log_every_n_steps=1, default_root_dir=tmp_path, **quiet).fit(module)
    assert sorted(module.seen) == sorted([*range(37)] * 2)


def test_the_batch_moves_and_the_indices_on_the_host_stay():
    batch = IndexedBatch({"x": torch.zeros(2, 3)}, torch.tensor([4, 7]))
    moved = pl.utilities.move_data_to_device(batch, torch.device("meta"))
    assert moved.batch["x"].is_meta
    assert moved.indices.is_meta
    assert moved.on_host.tolist() == [4, 7]
    assert dataclasses.replace(batch, batch=0).on_host.tolist() == [4, 7]  # as FullyShardedDataParallel does
    assert pl.utilities.data.extract_batch_size(moved) == 2


def test_another_process_may_use_a_pickled_cache(tmp_path, data, teacher):
    cache = filled(tmp_path / "cache", data, teacher)
    batch = next(iter(cache.loader(DataLoader(data, batch_size=4))))
    expected = answer(cache, batch)
    assert torch.equal(answer(pickle.loads(pickle.dumps(cache)), batch), expected)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        answers = pool.starmap(answer, [(cache, batch)] * 2)
    assert all(torch.equal(one, expected) for one in answers)


def test_a_full_cache_needs_no_teacher_and_lets_go_of_it(tmp_path, data, teacher):
    cache = filled(tmp_path / "cache", data, teacher)
    assert cache._teacher is None
    again = LogitCache(tmp_path / "cache", data)
    assert again.is_full
    again.fill(DataLoader(data, batch_size=8))


class Ending(nn.Linear):
    """Kills its process at a given call; one that waits lets the other processes come up."""

    def __init__(self, kill_at=0, wait=0.0):
        super().__init__(3, 4)
        nn.init.constant_(self.weight, 0.01)
        nn.init.constant_(self.bias, 0.5)
        self.kill_at, self.wait, self.calls = kill_at, wait, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.wait)
        return super().forward(x)


def in_a_process(folder, teacher):
    """Fill in a process of its own, every batch a block; its exit code is how often the teacher was called."""

    def fill():
        logit_writer._BLOCK = 0.0
        filled(folder, numbers(), teacher, batch_size=4)
        sys.exit(teacher.calls)

    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    return process


def numbers():
    return TensorDataset(torch.arange(60.0).view(20, 3), torch.zeros(20))


def exit_code(process):
    process.join()
    code = process.exitcode
    process.close()
    return code


def assert_right(cache, data, teacher):
    batch = next(iter(cache.loader(DataLoader(data, batch_size=len(data)))))
    torch.testing.assert_close(answer(cache, batch), live(teacher, batch), rtol=1e-3, atol=1e-3)


def test_a_killed_fill_goes_on_from_its_last_block(tmp_path):
    folder = tmp_path / "cache"
    assert exit_code(in_a_process(folder, Ending(kill_at=4))) == -signal.SIGKILL
    data, teacher = numbers(), Ending()
    with (folder / "values.bin").open("ab") as file:
        file.write(b"half a row")
    cache = LogitCache(folder, data, teacher)
    assert not cache.is_full
    assert json.loads((folder / "cache.json").read_text())["samples"] == 12
    asked = []
    teacher.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    cache.fill(DataLoader(data, batch_size=4))
    assert asked == [4, 4]
    assert_right(cache, data, teacher)


def test_a_fill_killed_before_its_first_block_starts_anew(tmp_path):
    folder = tmp_path / "cache"
    assert exit_code(in_a_process(folder, Ending(kill_at=1))) == -signal.SIGKILL
    data, teacher = numbers(), Ending()
    (folder / "values.bin").write_bytes(b"half a row")
    cache = filled(folder, data, teacher)
    assert_right(cache, data, teacher)


def test_of_several_processes_one_fills_and_the_others_wait(tmp_path):
    folder = tmp_path / "cache"
    both = [in_a_process(folder, Ending(wait=0.1)) for _ in range(2)]
    assert sorted(exit_code(process) for process in both) == [0, 5]
    data, teacher = numbers(), Ending()
    batch = next(iter(LogitCache(folder, data, teacher).loader(DataLoader(data, batch_size=20))))
    torch.testing.assert_close(
        answer(LogitCache(folder, data, teacher), batch), live(teacher, batch), rtol=1e-3, atol=0
    )


def test_two_processes_read_while_the_folder_stays_the_same(tmp_path, data, teacher):
    folder = tmp_path / "cache"
    filled(folder, data, teacher)
    before = {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir()}
    time.sleep(0.01)
    readers = [LogitCache(folder, data, teacher) for _ in range(2)]
    batches = [next(iter(one.loader(DataLoader(data, batch_size=37)))) for one in readers]
    assert torch.equal(*(answer(one, batch) for one, batch in zip(readers, batches, strict=True)))
    assert {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir()} == before


def test_a_full_disk_leaves_what_is_there(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    data, teacher = numbers(), Ending()
    monkeypatch.setattr(logit_writer, "_BLOCK", 0.0)
    commits, real = [], os.fsync

    def full(descriptor):
        commits.append(descriptor)
        if len(commits) > 4:  # data and count of two blocks
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        filled(folder, data, teacher, batch_size=4)
    monkeypatch.setattr(os, "fsync", real)
    assert json.loads((folder / "cache.json").read_text())["samples"] == 8
    cache = filled(folder, data, teacher)
    assert_right(cache, data, teacher)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_is_named(tmp_path, data, teacher):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cache"):
        filled(tmp_path / "cache", data, teacher)


def test_a_cut_file_is_noticed(tmp_path, data, teacher):
    filled(tmp_path / "cache", data, teacher)
    with (tmp_path / "cache" / "values.bin").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(CheckpointError, match=r"values.bin is shorter than cache.json says: delete the folder"):
        LogitCache(tmp_path / "cache", data, teacher)
