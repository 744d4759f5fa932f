"""Values that hold tensors, with each of them changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def mapped(value: Any, change: Callable[[Tensor], Tensor], but: tuple[str, ...] = ()) -> Any:
    """A frozen dataclass with `change` applied to each tensor in it, however deep, except in the fields named."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name not in but]
        return replace(value, **{name: mapped(getattr(value, name), change) for name in names})
    return value
