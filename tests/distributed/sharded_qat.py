"""Run by test_sharded_quantization.py: worlds of 2, 1 and 4 processes, which write what they find into a folder."""

from tests.distributed import sharded_quantization
from tests.distributed.worlds import run_world


def main(results):
    run_world(2, sharded_quantization.train_and_save, results)
    for size in (1, 2, 4):
        run_world(size, sharded_quantization.go_on, results)
    run_world(2, sharded_quantization.others, results)
