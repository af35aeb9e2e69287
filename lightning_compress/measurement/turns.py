"""Several processes measured in turn, round by round."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lightning_compress.measurement.processes import Worker
from lightning_compress.measurement.shapes import Feed

TURN_MS, MOST_CALLS = 20.0, 50
WARM_UP_MS, MOST_WARM_UP = 3.0, 3  # at the start of a turn: the others have had the caches
LEAST_ROUNDS = 5

Turns = list[list[float]]


def in_turn(workers: Mapping[str, Worker], feed: Feed, *, folder: Path, seconds: float) -> dict[str, Turns]:
    """Milliseconds of every call, of processes that have loaded.

    Args:
        workers: by name; only one of them works at a time.
        feed: what every one of them is given.
        folder: an existing one, for the inputs.
        seconds: how long rounds are begun, after the warm-up; at least five are made.

    Returns:
        By name, one entry a round: the calls of its turn. A turn is about 20 ms of the slowest, and of as many calls
        for all of them.

    Raises:
        CompressionError: a model fails on the inputs, or its process ends or hangs.
    """
    slowest = max(worker.prepare(feed, folder) for worker in workers.values())
    calls = min(MOST_CALLS, max(1, math.ceil(TURN_MS / slowest)))
    warm_up = min(MOST_WARM_UP, max(1, math.ceil(WARM_UP_MS / slowest)))
    turns: dict[str, Turns] = {name: [] for name in workers}
    began, rounds = time.monotonic(), 0
    while rounds < LEAST_ROUNDS or time.monotonic() - began < seconds:
        # Forth and back, so that nobody always follows the same neighbour.
        for name in list(workers)[:: 1 if rounds % 2 == 0 else -1]:
            turns[name].append(workers[name].ask(calls=calls, warm_up=warm_up)["milliseconds"])
        rounds += 1
    return turns


def fast_quarter(turns: Turns) -> np.ndarray:
    """The lower quartile of each turn: what disturbs a call only ever makes it longer.

    Example:
        >>> fast_quarter([[1.0, 1.0, 1.1, 9.0, 7.0]])
        array([1.])
    """
    return np.asarray([np.percentile(turn, 25) for turn in turns])
