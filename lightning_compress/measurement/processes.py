"""Processes that measure: launched, asked, and gone whatever happens."""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lightning_compress.core import CompressionError
from lightning_compress.measurement.shapes import Feed
from lightning_compress.measurement.subjects import Subject

_PROGRAM = Path(__file__).with_name("latency_worker.py")
_OWN_GROUP = hasattr(os, "killpg")
_CLOCK = 1e-4  # milliseconds that a clock can tell
_LAST_WORDS = 2_000  # characters of standard error that are read for the message


class Worker:
    """A process that holds one model or file, and sleeps unless it is asked.

    It ends with its parent, whose end closes its standard input, and when the ``with`` block is left.

    Args:
        subject: what it holds.
        folder: an existing one for its settings and for what it says on standard error.
        timeout: seconds within which an answer must come.
    """

    def __init__(self, subject: Subject, *, folder: Path, timeout: float) -> None:
        self.subject, self._folder, self._timeout = subject, folder, timeout
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        settings = self._folder / f"{self.subject.name}.json"
        settings.write_text(json.dumps(self.subject.settings()))
        threads = str(self.subject.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with self._complaints().open("w") as complaints:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own program
                [sys.executable, "-P", str(_PROGRAM), str(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env=environment,
                # Ctrl-C is the parent's; and what the worker starts itself (compilers, say) ends with it.
                start_new_session=_OWN_GROUP,
            )
        threading.Thread(target=_forward, args=(self._process.stdout, self._answers), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            if _OWN_GROUP:
                os.killpg(self._process.pid, signal.SIGKILL)  # it holds nothing worth an orderly end
            else:
                self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def prepare(self, feed: Feed, folder: Path) -> float:
        """Hand over the inputs of the questions that follow, and warm up.

        Args:
            feed: the inputs.
            folder: an existing one, where they are written to.

        Returns:
            Milliseconds of a call, roughly.

        Raises:
            CompressionError: as for :meth:`ask`.
        """
        path = folder / "inputs.pickle"
        path.write_bytes(pickle.dumps(feed.travelling(as_arrays=self.subject.takes_arrays)))
        milliseconds: float = self.ask(prepare=str(path))["milliseconds"]
        return max(milliseconds, _CLOCK)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Put a question and wait for its answer; see :mod:`lightning_compress.measurement.latency_worker`.

        Raises:
            CompressionError: the model fails, or the process ends or does not answer in time.
        """
        stream = self._process.stdin
        if stream is not None:
            with suppress(OSError):  # it has ended: the missing answer says so
                stream.write(json.dumps(question) + "\n")
                stream.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer; the first one comes unasked, once the model is loaded."""
        try:
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            raise CompressionError(
                f"{self.subject.argument}= gave no answer in {self.subject.runtime} for {self._timeout:g} s: its "
                "process was ended. Give a larger timeout= if it is only slow."
            ) from None
        if not line:
            raise CompressionError(
                f"{self.subject.argument}= in {self.subject.runtime}: its process ended with code "
                f"{self._process.wait()}{self._last_words()}."
            )
        content: dict[str, Any] = json.loads(line)
        if "error" in content:
            raise CompressionError(
                f"{self.subject.argument}= ({self.subject.label}) cannot be run in {self.subject.runtime}: "
                f"{content['error']}."
            )
        return content

    def _complaints(self) -> Path:
        return self._folder / f"{self.subject.name}.stderr"

    def _last_words(self) -> str:
        text = self._complaints().read_text(errors="replace")[-_LAST_WORDS:]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f": {lines[-1].rstrip('.')}" if lines else ""


def _forward(stream: IO[str] | None, answers: queue.SimpleQueue[str]) -> None:
    if stream is not None:
        with stream:
            for line in stream:
                answers.put(line)
    answers.put("")
