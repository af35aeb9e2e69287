"""Processes on the loopback device that share one import: a script forks them, each world after the other."""

import multiprocessing
import os
import socket
import sys
import traceback

LIMIT = 200.0  # seconds for one world


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _enter(rank, size, port, work, arguments):
    import torch

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    try:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
        work(*arguments)
        torch.distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def exit_codes(size, work, *arguments):
    """Call ``work`` in each of ``size`` processes.

    Returns:
        How each ended: negative for a signal, ``None`` if it was still running after ``LIMIT``.
    """
    context = multiprocessing.get_context("fork")
    port = free_port()
    processes = [
        context.Process(target=_enter, args=(rank, size, port, work, arguments), daemon=True) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def run_world(size, work, *arguments):
    """Call ``work`` in each of ``size`` processes; end the script if one fails, or takes too long."""
    if any(code != 0 for code in exit_codes(size, work, *arguments)):
        sys.exit(f"{work.__name__} failed in a world of {size}")
