"""What takes long and is only read afterwards is made once, for all workers of a run of the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock


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
    own = {"PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(root / path), *map(str, arguments)]
    environment = os.environ | own | environment
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr
