"""Distillation of MiniLM on Rotten Tomatoes, its cost, and losses side by side on MNIST digits.

``python -m benchmarks.distillation`` measures what is missing and prints the tables; ``--only`` one of them. Points are
saved as they end. Torchdistill is in no extra: install it in a folder on PYTHONPATH, without its dependencies.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from benchmarks.distillation_digits import digits
from benchmarks.distillation_step import step_time
from benchmarks.distillation_text import METHODS, text
from benchmarks.points import Points


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["text", "digits", "step"], help="one table")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="rows of text")
    parser.add_argument("--threads", type=int, default=2, help="of torch; two processes of one do more than one of two")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    points = Points("distillation", {"torch": torch.__version__})
    if arguments.only in (None, "text"):
        text(points, methods=arguments.methods)
    if arguments.only in (None, "digits"):
        digits(points)
    if arguments.only in (None, "step"):
        step_time(points, arguments.threads)


if __name__ == "__main__":
    main()
