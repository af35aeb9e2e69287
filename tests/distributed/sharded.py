"""Run by test_sharded_pruning.py: worlds of 2, 1 and 4 processes, which write what they find into a folder."""

import json

import torch

from tests.distributed import sharded_fits, sharded_masks
from tests.distributed.worlds import run_world


def compare_masks(folder, *ways):
    """What is not the same as on one process, by way of sharding; on the last rank, whose parts may be empty."""
    for name in ways:
        shard, cut = getattr(sharded_masks, name), name in ("tensor_parallel", "two_dimensional")
        few = torch.distributed.get_world_size() > 2 or name in ("partly", "flattened")
        some = sharded_masks.SOME if few else sharded_masks.CASES
        found = sharded_masks.differences(shard, sharded_masks.CUT_FOR_GOOD if cut else some, even=cut)
        if not cut:
            found |= sharded_masks.unpruned_zeros(shard)
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            (folder / f"{name}.json").write_text(json.dumps(found))


def main(results):
    run_world(2, compare_masks, results, "by_layer", "partly", "tensor_parallel", "flattened")
    run_world(4, compare_masks, results, "two_dimensional", "hybrid", "flattened_hybrid")
    run_world(2, sharded_fits.train_and_save, results)
    for size in (1, 2, 4):
        run_world(size, sharded_fits.go_on, results)
    run_world(2, sharded_fits.other_models, results)
