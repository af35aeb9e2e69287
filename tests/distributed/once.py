"""What takes long and is only read afterwards is made once, for all workers of a run of the tests."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from filelock import FileLock

OWN = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
LOADED = [  # whose imports take most of the time of many a script
    "tests.conformance.parallel_fits",
    "tests.distributed.distilling",
    "tests.distributed.flattened",
    "tests.distributed.sharded",
    "tests.distributed.sharded_qat",
    "tests.faults.ranks",
    "tests.recipes.small",
]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(LOADED)


def once(tmp_path_factory, name, make):
    """The folder that ``make(folder)`` filled, in whichever worker came first."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / name, base / f"{name}.made"
    with FileLock(base / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def run_script(path, *arguments, seconds=560, **environment):
    """Run a script of the tests, whose processes talk to the loopback device only.

    Args:
        path: from the root of the repository.
        arguments: of the script.
        seconds: that it may take.
        environment: more variables.

    Returns:
        What it wrote to standard error.
    """
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", str(root / path), *map(str, arguments)]
    environment = os.environ | OWN | {"PYTHONPATH": str(root)} | environment
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


def _enter(said, work, arguments):
    os.dup2(os.open(said, os.O_WRONLY), sys.stderr.fileno())
    os.environ.update(OWN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    work(*arguments)


def start_in_a_fork(work, *arguments):
    """Call a function in a process of its own, forked from one that has imported what is in ``LOADED``.

    That one has a single thread, so that a fork of it can fork in turn; each worker of a run of the tests has one.

    Args:
        work: found by its name in its module.
        arguments: that can be pickled.

    Returns:
        A function that waits for its end, and gives its exit code and what it wrote to standard error.
    """
    said = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed below
    process = FORKS.Process(target=_enter, args=(said.name, work, arguments))
    process.start()

    def wait(seconds=560):
        with said:
            process.join(seconds)
            code = process.exitcode
            process.kill()
            return code, Path(said.name).read_text()

    return wait


def run_in_forks(work, *calls):
    """The same in several processes at once, each with arguments of its own; none may fail."""
    running = [start_in_a_fork(work, *arguments) for arguments in calls]
    for code, said in [wait() for wait in running]:
        assert code == 0, said[-5000:]


def run_in_a_fork(work, *arguments):
    run_in_forks(work, arguments)
