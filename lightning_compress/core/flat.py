"""Parameters that ``FullyShardedDataParallel`` has flattened: a process holds a run of the numbers of each, or none.

It lays the parameters of a module that it wraps one behind the other and cuts that flat tensor evenly, so the part of
a matrix begins and ends anywhere in a row. With ``use_orig_params=True``, as Lightning has it, the parameters keep
their places, as vectors of what is here; in the module's forward pass a whole tensor stands there instead. Nothing on
such a vector says what it is a part of: :func:`mark_` writes it there.
"""

# ruff: noqa: SLF001 (torch tells nobody by public means where in a flat tensor a parameter lies)
from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_PIECE = "_lightning_compress_piece"  # on a parameter


@dataclass(frozen=True, eq=False)
class Piece:
    """Where in a flat tensor a parameter lies.

    Attributes:
        shape: of the whole parameter.
        bounds: of each process that shares it, from which of the parameter's numbers to which it holds.
        mesh: of these processes, in one dimension.
        wrapper: the module that gathers it.
    """

    shape: Any
    bounds: tuple[tuple[int, int], ...]
    mesh: DeviceMesh
    wrapper: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """Nothing: in another process it would say nothing, and its wrapper cannot be pickled."""
        return type(None), ()

    @property
    def is_alone(self) -> bool:
        """Whether the parameter is this process's part of it now, and not gathered."""
        handle = self.wrapper._handle
        return bool(handle.is_sharded(handle.flat_param))


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is a ``FullyShardedDataParallel``; by name, as importing that takes long."""
    return any(cls.__name__ == "FullyShardedDataParallel" for cls in type(module).__mro__)


def mark_(model: nn.Module) -> None:
    """Write on each flattened parameter what it is a part of; a second call changes nothing.

    Args:
        model: with all modules of that class, the outermost too: where a Trainer wraps a module, that is no part of it.
    """
    meshes: dict[Any, DeviceMesh] = {}
    wrappers: list[Any] = list(filter(is_wrapper, model.modules()))
    for wrapper in wrappers:
        if wrapper._is_root is None:  # outer ones come first, and take those inside them along
            _lazy_init(wrapper)
        handle = wrapper._handle  # there is no other way to it
        if handle is None or not handle.uses_sharded_strategy or not handle._use_orig_params:
            continue
        flat, group = handle.flat_param, handle.process_group
        if group not in meshes:
            from torch.distributed.device_mesh import DeviceMesh

            meshes[group] = DeviceMesh.from_group(group, handle.device.type)
        # Behind some parameters there are numbers that only align the next one.
        offsets = zip(handle._get_flat_param_offsets(), flat._is_padding_mask, strict=True)
        begins = [begin for (begin, _), is_padding in offsets if not is_padding]
        share = flat._sharded_size.numel()
        for parameter, shape, begin in zip(flat._params, flat._shapes, begins, strict=True):
            cuts = [min(max(place * share - begin, 0), shape.numel()) for place in range(group.size() + 1)]
            setattr(parameter, _PIECE, Piece(shape, tuple(pairwise(cuts)), meshes[group], wrapper))


def _lazy_init(wrapper: Any) -> None:
    from torch.distributed.fsdp._runtime_utils import _lazy_init as initialize

    initialize(wrapper, wrapper)


def piece_of(tensor: Tensor) -> Piece | None:
    """What a tensor is a part of at this moment, if :func:`mark_` has seen it."""
    piece: Piece | None = getattr(tensor, _PIECE, None)
    return piece if piece is not None and piece.is_alone else None


def wrapper_of(module: nn.Module) -> Any:
    """What gathers the parameters that a module has itself, as far as :func:`mark_` has seen them, or ``None``."""
    pieces = (getattr(parameter, _PIECE, None) for parameter in module.parameters(recurse=False))
    return next((piece.wrapper for piece in pieces if piece is not None), None)


def unflattened(wrapper: Any) -> Any:
    """A context in which the parameters of one wrapped module, not of those inside it, are whole on each process.

    To be entered between steps.
    """
    from torch.distributed.fsdp._common_utils import HandleTrainingState, TrainingState

    if wrapper._is_root is False:  # the root tells it when a step is over; in a second fit there may be none any more
        wrapper.training_state, wrapper._handle._training_state = TrainingState.IDLE, HandleTrainingState.IDLE
    return type(wrapper).summon_full_params(wrapper, recurse=False, writeback=False)


def reshard(wrapper: Any) -> None:
    """Have each process hold its part again, and gather the next time what it is by then."""
    from torch.distributed.fsdp._runtime_utils import _reshard

    handle = wrapper._handle
    if handle is not None and handle.uses_sharded_strategy and not handle.needs_unshard():
        _reshard(wrapper, handle, True)  # noqa: FBT003 (its way to let go of what was gathered)
