"""After a fit in launched processes the main process knows what it knows after one of its own."""

import onnxruntime
import pytest
import torch

from lightning_compress import export, load_from_checkpoint
from lightning_compress.callbacks.handover import CHECKPOINT_KEY, MEMORY
from tests.distributed.once import once, run_script
from tests.distributed.spawning import FEATURES, Net, ranges


def launched(folder):
    """What all the fits leave, and in ``output`` what they say."""
    (folder / "tmp").mkdir()
    said = run_script("tests/distributed/spawning.py", folder, TMPDIR=str(folder / "tmp"))
    (folder / "output").write_text(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return once(tmp_path_factory, "spawn", launched)


@pytest.fixture
def read(folder):
    return lambda name: torch.load(folder / f"{name}.pt", weights_only=True)


def assert_alike(found, expected, place=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for name, value in expected.items():
            assert_alike(found[name], value, f"{place}/{name}")
    elif isinstance(expected, (list, tuple)):
        for number, (here, there) in enumerate(zip(found, expected, strict=True)):
            assert_alike(here, there, f"{place}/{number}")
    else:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected, place


def test_what_two_spawned_processes_trained_beside_the_weights_comes_back(read):
    found, witness = read("spawned"), read("witness")
    assert_alike(found["returned"], witness["weights"])
    assert_alike(found["ranges"], witness["ranges"])
    assert found["ranges"]
    kept = {name: state["method"] for name, state in found["kept"].items()}
    assert_alike(kept["KnowledgeDistillation"]["learned"], witness["learned"])
    assert_alike(kept["GradualPruning"]["pruner"]["statistics"], witness["statistics"])
    assert_alike(kept["QuantizationAwareTraining"]["ranges"], witness["moments"])
    assert_alike(read("forked"), witness)


def test_a_trainer_measures_the_quantized_model(read):
    found = read("spawned")
    assert found["test"] == pytest.approx([found["by hand"]] * 2, rel=1e-5)
    assert found["forked test"] == pytest.approx(found["by hand"], rel=1e-5)
    assert found["dense"] != pytest.approx(found["by hand"], rel=1e-4)  # ten times the tolerance above
    assert found["still plain"] == {}


def test_an_attached_model_is_exported_quantized(folder, read, tmp_path):
    model = torch.load(folder / "attached.pt", weights_only=False)
    report = export(model, tmp_path / "net.onnx", FEATURES)
    assert (report.stored_weights, report.quantized_inputs) == (2, 2)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (outputs,) = session.run(None, {session.get_inputs()[0].name: FEATURES.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), read("spawned")["outputs"], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_saved_afterwards_has_all_states(folder, read):
    model, found = load_from_checkpoint(Net, folder / "after.ckpt").eval(), read("spawned")
    assert_alike(ranges(model), found["ranges"])
    with torch.no_grad():
        assert torch.equal(model(FEATURES), found["outputs"])
    states = torch.load(folder / "after.ckpt", weights_only=True)[CHECKPOINT_KEY]
    assert [name.partition("{")[0] for name in states] == list(found["kept"])
    assert not [name for name, state in states.items() if MEMORY in state]
    assert list(torch.load(folder / "brought.ckpt", weights_only=True)[CHECKPOINT_KEY]) == ["KnowledgeDistillation"]


def test_files_are_private_and_gone_once_they_are_read_or_the_process_ends(folder, read):
    found = read("spawned")
    assert len(found["files"]) == len(found["kept"])
    assert found["files after"]
    assert list(read("unread").values()) == [0o600]
    assert not list(folder.glob("tmp/lightning_compress-*"))


def test_the_next_fit_goes_on_as_in_one_process_and_that_of_another_module_begins_anew(read):
    for name in ("three", "copies"):
        for fit in ("0", "1", "other"):
            assert_alike(read(f"{name} launched {fit}"), read(f"{name} in memory {fit}"), f"{name} {fit}")
        assert_alike(read(f"{name} launched other"), read(f"{name} in memory fresh"), name)
    steps = [read(f"three launched {fit}") for fit in ("0", "1", "other")]
    assert [one["steps of projections"] for one in steps] == [[8.0, 8.0], [16.0, 16.0], [8.0, 8.0]]
    assert [float(one["moments"][0]["step"]) for one in steps] == [6.0, 14.0, 6.0]


def test_peers_train_in_each_process_and_come_back_on_request(read):
    found, witness = read("peers"), read("peers witness")
    assert_alike(found["after"], found["before"])
    assert_alike({f"peer_0.{name}": value for name, value in found["restored"].items()}, witness["learned"])
    assert_alike(found["ema"], witness["copies"]["ema"])


def test_a_fit_that_fails_leaves_what_was_there(read):
    found = read("failing")
    assert "on purpose" in found["reason"]
    assert_alike(found["ranges"], read("failing witness")["ranges"])


def test_a_folder_that_cannot_be_written_costs_no_fit(folder, read):
    found = read("unwritable")
    assert not torch.equal(found["before"]["head.weight"], found["after"]["head.weight"])
    assert "no fit has left ranges" in found["error"]
    (line,) = [line for line in (folder / "output").read_text().splitlines() if "cannot be written" in line]
    assert "No such file or directory" in line
    assert "resume from a checkpoint" in line


def test_a_fit_says_that_quantizers_are_to_be_attached(folder):
    assert "attach_(model) before you export" in (folder / "output").read_text()


def test_a_report_comes_back_and_so_does_the_dense_model(folder, read):
    found = read("reported")
    assert found["is the file's"]
    assert found["loaders"] == ["validation", "test"]
    assert found["tested"] == pytest.approx(found["by hand"], rel=1e-5)
    assert found["dense in test"] == pytest.approx(found["dense"], rel=1e-5)
    assert list((folder / "report").glob("dense_before_fit-*.pt"))
