"""Hooks on modules, beside ``torch.compile``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Hook = TypeVar("Hook", bound=Callable[..., Any])


def untraced(hook: Hook) -> Hook:
    """A function or hook that runs as it is written, between two graphs, when what calls it is compiled.

    It costs a break in the graph. A hook that only sets attributes needs none: it can be compiled along.
    """
    disabled: Hook = torch.compiler.disable(hook)
    return disabled


def forget_compiled() -> None:
    """Compile anew what was compiled: torch does not look whether a module has got its first hook since."""
    if "torch._dynamo" in sys.modules:  # it takes seconds to import, and is needed to compile anything
        torch.compiler.reset()


class Eagerly:
    """From here to :meth:`close` compiled code runs as it was written, and nothing is compiled.

    Torch's own switch puts back what it found, and so is closed in the order of opening; these need not be.
    """

    _open = 0
    _switch: Any = None

    def __init__(self) -> None:
        if Eagerly._open == 0:
            Eagerly._switch = torch.compiler.set_stance("force_eager")
        Eagerly._open += 1

    def close(self) -> None:
        """Go on with what is compiled, once all are closed."""
        Eagerly._open -= 1
        if Eagerly._open == 0:
            Eagerly._switch.__exit__(None, None, None)
