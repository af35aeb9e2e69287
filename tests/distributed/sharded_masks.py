"""Run by test_sharded_pruning.py: pruners of sharded models beside pruners of the same models on one process."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_compress.core import select
from lightning_compress.core.flat import mark_
from lightning_compress.core.layout import local
from lightning_compress.pruning import Pool, Pruner, needs, parse_pattern

STEPS = ((0.25, 0.0), (0.5, 0.0), (0.75, 0.0))
EXCHANGED = ((0.5, 0.0), (0.5, 0.4), (0.75, 0.3))


@needs("fisher", "noise")
def of_the_whole_layer(weight, statistics):
    """A score that a part of the layer does not have."""
    weight.div_(weight.norm())  # a weight of its own to work on
    return weight.abs() + statistics["fisher"].argsort(dim=-1).float() + statistics["noise"] * weight.shape[0]


SOME = ("ties by layer", "fisher", "wanda", "of one's own", "2:4, ties", "2x2", "random regrowth")
CUT_FOR_GOOD = ("magnitude", "ties by layer", "random", "wanda", "2:4, ties", "2x2", "1x4, fisher", "random regrowth")
CASES = {
    "magnitude": {},
    "magnitude by layer": {"by_layer": True},
    "ties": {"rounded": True},
    "ties by layer": {"rounded": True, "by_layer": True},
    "random": {"criterion": "random"},
    "fisher": {"criterion": "fisher"},
    "taylor": {"criterion": "taylor", "by_layer": True},
    "movement": {"criterion": "movement"},
    "soft movement": {"criterion": "soft_movement"},
    "wanda": {"criterion": "wanda", "by_layer": True},
    "of one's own": {"criterion": of_the_whole_layer},
    "2:4": {"pattern": "2:4"},
    "2:4, ties": {"pattern": "2:4", "rounded": True},
    "2x2": {"pattern": "2x2"},
    "4x1 by layer, ties": {"pattern": "4x1", "by_layer": True, "rounded": True},
    "1x4, fisher": {"pattern": "1x4", "criterion": "fisher"},
    "gradient regrowth": {"regrow": "gradient"},
    "random regrowth": {"regrow": "random", "by_layer": True},
    "2x2, random regrowth": {"pattern": "2x2", "regrow": "random"},
    "from zeros": {"criterion": "movement", "from_zeros": True},
}


class Transposed(nn.Module):
    """Convolutions of both kinds: of the second the inputs are cut, so that groups of inputs cross the cut."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 12, 1)
        self.second = nn.ConvTranspose2d(12, 4, 1)

    def forward(self, features):
        return self.second(self.first(features[:, :4, None, None])).flatten(1)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight

    def forward(self, features):
        return self.second(self.first(features)) + features


class Network(nn.Module):
    """Layers of 1, 5 and 7 rows among others; ``fits`` leaves out those that no pattern divides."""

    def __init__(self, *, fits):
        super().__init__()
        torch.manual_seed(0)
        rows = (12, 12) if fits else (7, 5)
        self.body = nn.Sequential(nn.Linear(8, rows[0]), nn.ReLU(), nn.Linear(rows[0], rows[1]), nn.ReLU())
        self.conv = Transposed()
        self.narrow = nn.Linear(rows[1] + 4, 4 if fits else 1)
        self.tied = Tied()

    def forward(self, features):
        features = self.tied(features)
        return self.narrow(torch.cat([self.body(features), self.conv(features)], 1))


def by_layer(model):
    """One group of parameters a layer, and the outermost for what is left."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in (model.body[0], model.body[2], model.conv, model.tied):
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def partly(model):
    """A convolution and the last layer stay whole on every process."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in (model.body, model.tied):
        fully_shard(module, mesh=mesh)
    return model


def tensor_parallel(model):
    """Cut by outputs, then by inputs."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    parallelize_module(model.body, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model


def two_dimensional(model):
    """Both at once."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model.body, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["data"])


def hybrid(model):
    """Two copies, each of two parts."""
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts")))


def flattened(model, **settings):
    """Runs of numbers that begin anywhere in a row, or none."""
    settings |= {"use_orig_params": True, "device_id": torch.device("cpu")}
    model.body[2], model.conv, model.tied = (
        FullyShardedDataParallel(module, **settings) for module in (model.body[2], model.conv, model.tied)
    )
    wrapped = FullyShardedDataParallel(model, **settings)
    mark_(wrapped)
    return wrapped


def flattened_hybrid(model):
    """Two copies, each of two runs."""
    mesh = init_device_mesh("cpu", (2, 2))
    return flattened(model, sharding_strategy=ShardingStrategy.HYBRID_SHARD, device_mesh=mesh)


def pruner_of(model, *, criterion="magnitude", pattern="unstructured", regrow=None):
    targets = select(model, include="*")
    return Pruner(targets, criterion=criterion, pattern=parse_pattern(pattern), regrow=regrow, seed=3)


def step(pruner, model, seed, rate=0.01):
    """One step of training, on the same examples on all processes."""
    examples = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(examples).square().sum().backward()
    pruner.observe(range(len(pruner.targets)), capture=True)
    with torch.no_grad():
        for parameter in pruner.parameters:
            if parameter.grad is not None:  # of a flattened parameter that lies elsewhere altogether
                local(parameter).sub_(local(parameter.grad), alpha=rate)
    pruner.enforce()


def masks(pruner):
    layouts = pruner.spread.layouts
    return [layout.whole(mask) for layout, mask in zip(layouts, pruner.masks, strict=True)]


def history(model, rate=0.01, *, by_layer=False, rounded=False, from_zeros=False, **settings):
    """The masks after each update of a small schedule, and the figures told of them."""
    pruner = pruner_of(model, **settings)
    pruner.statistics.watch_inputs()
    everything = range(len(pruner.targets))
    pools = [Pool([place], 0.75) for place in everything] if by_layer else [Pool(list(everything), 0.75)]
    found = []
    if from_zeros:
        pruner.mask_from_zeros()
        found.append((masks(pruner), pruner.zeros()))
    most = pruner.pattern.full_sparsity
    for count, (sparsity, exchanged) in enumerate(EXCHANGED if settings.get("regrow") else STEPS):
        step(pruner, model, count, rate)
        if rounded:
            with torch.no_grad():
                for parameter in pruner.parameters:
                    local(parameter).mul_(4).round_().div_(4)
        pruner.reduce_statistics(pruner.spread.mean)
        pruner.set_strength(pools, [sparsity] * len(pools), steps=2)
        if pruner.strength:
            shares = pruner.shares_below_threshold(pools)
            found.append(([], [round(share, 6) for share in shares]))
        pruner.prune(pools, [sparsity * most] * len(pools), exchanged=exchanged, step=count)
        found.append((masks(pruner), [*pruner.zeros(), pruner.revived()]))
    pruner.statistics.unwatch()
    return found


def network(*, even=False, from_zeros=False, pattern="unstructured", **_):
    model = Network(fits=even or pattern != "unstructured")
    if from_zeros:
        with torch.no_grad():
            model.body[0].weight[::2] = 0.0
    return model


def differences(shard, cases=tuple(CASES), *, even=False):
    """What is not the same under a way of sharding, by case; nothing, if all is right.

    Where layers are cut for good the gradients are rounded otherwise, so ``even`` networks are not trained.
    """
    found = {}
    for name in cases:
        plain, sharded = (network(even=even, **CASES[name]) for _ in range(2))
        sharded = shard(sharded)
        expected, got = (history(model, 0.0 if even else 0.01, **CASES[name]) for model in (plain, sharded))
        found[name] = [
            f"update {count}"
            for count, (one, other) in enumerate(zip(expected, got, strict=True))
            if one[1] != other[1] or not all(map(torch.equal, one[0], other[0]))
        ]
        if not sum(got[-1][1]):
            found[name].append("nothing was pruned")
    return found


def unpruned_zeros(shard):
    """Whether indices of zeros that were never pruned are those of the whole weight, and lead to the same mask."""
    models = network(), shard(network())
    pruners = [pruner_of(model) for model in models]
    for pruner, model in zip(pruners, models, strict=True):
        step(pruner, model, 0)
        pruner.prune([Pool(list(range(len(pruner.targets))), 0.5)], [0.5], exchanged=0.0, step=1)
        for parameter, mask, layout in zip(pruner.parameters, masks(pruner), pruner.spread.layouts, strict=True):
            never = mask.clone()
            never.view(-1)[::2] = 0.0
            local(parameter).detach().mul_(1 - layout.part(never))
    states = [pruner.state_dict()["unpruned_zeros"] for pruner in pruners]
    before = masks(pruners[1])
    pruners[1].load_state_dict(pruners[0].state_dict())
    return {
        "indices": [name for name in states[0] if not torch.equal(states[0][name], states[1][name])],
        "masks": [place for place, mask in enumerate(masks(pruners[1])) if not torch.equal(mask, before[place])],
        "none": [] if any(map(len, states[0].values())) else ["there were no such zeros"],
    }
