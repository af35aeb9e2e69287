"""Quantization beside its peers: accuracy, speed of the exported files, a CNN, and the time of a training step.

``python -m benchmarks.quantization`` measures what is missing and prints the tables; ``--only`` one of them. Points are
saved as they end. The peers come with the extras, but for Model Optimizer (see ``benchmarks.peers``).
"""

from __future__ import annotations

import argparse
import warnings

import torch

from benchmarks.fine_tuning import SENTENCES
from benchmarks.points import Points
from benchmarks.quantization_accuracy import METHODS, SETTINGS, accuracy
from benchmarks.quantization_cnn import cnn
from benchmarks.quantization_files import files
from benchmarks.quantization_speed import speed
from benchmarks.quantization_step import step_time


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["accuracy", "speed", "files", "cnn", "step"], help="one table")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="rows of accuracy")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="likewise")
    parser.add_argument("--data", choices=list(SENTENCES), default="rt-3k", help="what accuracy trains on")
    parser.add_argument("--threads", type=int, default=2, help="of torch; two processes of one do more than one of two")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    points = Points("quantization", {"torch": torch.__version__})
    if arguments.only in (None, "accuracy"):
        accuracy(points, methods=arguments.methods, settings=arguments.settings, data=arguments.data)
    if arguments.only in (None, "speed"):
        speed(points, arguments.threads)
    if arguments.only in (None, "files"):
        files(points)
    if arguments.only in (None, "cnn"):
        cnn(points, arguments.threads)
    if arguments.only in (None, "step"):
        step_time(points, arguments.threads)


if __name__ == "__main__":
    main()
