"""Hooks on modules, beside ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Hook = TypeVar("Hook", bound=Callable[..., Any])


def untraced(hook: Hook) -> Hook:
    """Compiled along with its module a hook would record once and never again."""
    disabled: Hook = torch.compiler.disable(hook)
    return disabled
