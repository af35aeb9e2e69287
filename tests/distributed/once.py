"""What takes long and is only read afterwards is made once, for all workers of a run of the tests."""

import os
import shutil

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
