"""Calling a model and seeing which of its modules is at work, without leaving a trace in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_compress.core import ConfigurationError
from lightning_compress.core.targets import plain_name

OnExit = Callable[[nn.Module, Any, Any], None]


class Scopes:
    """A context in which :attr:`current` is the module, of one model, whose ``forward`` runs.

    Its hooks are global ones: torch's fused layers look for hooks of their own children, and would run differently.

    Args:
        model: whose modules count; work of others belongs to those that call them.
        on_enter: called with a module as it begins.
        on_exit: called with a module, its positional inputs and its output.
    """

    def __init__(
        self, model: nn.Module, *, on_enter: Callable[[nn.Module], None] | None = None, on_exit: OnExit | None = None
    ) -> None:
        self.names = {module: plain_name(path) for path, module in model.named_modules()}
        self._stack = [model]
        self._on_enter, self._on_exit = on_enter, on_exit
        self._handles: list[RemovableHandle] = []

    @property
    def current(self) -> nn.Module:
        """The innermost module at work."""
        return self._stack[-1]

    def __enter__(self) -> Self:
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._exit, always_call=True),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(module if module in self.names else self.current)
        if self._on_enter is not None and module in self.names:
            self._on_enter(module)

    def _exit(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._on_exit is not None and module in self.names:
            self._on_exit(module, args, output)
        self._stack.pop()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Calls inside run eagerly and without gradients, and leave the model and the random generators as they were.

    In its own mode a model may count batches, move averages and draw random numbers; buffers, tensors that modules keep
    as plain attributes, and the generators' states come back.

    Args:
        model: will be called.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    kept = list(_kept_tensors(model))
    devices = {tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"}
    try:
        # torch's fused transformer layers are one operator that nothing can look into: they run their plain way.
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(sorted(devices)),
            torch.inference_mode(mode=False),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            # They fire for the wrapper and for what is in it, which is as it should be.
            warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        with torch.no_grad():
            for registry, name, tensor, value in kept:
                registry[name] = tensor
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def call(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], function: str) -> Any:
    """Call a model with what a user gave.

    Args:
        model: called.
        args: its positional inputs.
        kwargs: its inputs by name.
        function: that they were given to, for messages.

    Raises:
        ConfigurationError: the model failed.
    """
    try:
        return model(*args, **kwargs)
    except Exception as error:
        raise ConfigurationError(
            f"{function} calls {type(model).__name__}(*args, **kwargs), which failed with the inputs given: {error}; "
            "give the inputs that its forward takes, on the model's device."
        ) from error


def _kept_tensors(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor, Tensor]]:
    for module in model.modules():
        for registry in (module._buffers, module.__dict__):  # noqa: SLF001
            for name, value in registry.items():
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                    yield registry, name, value, value.detach().clone()
