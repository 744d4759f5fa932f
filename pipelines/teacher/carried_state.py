"""What a model carries from one forward to the next, although it should say the same to the same text.

Rotary frequencies that grow with the longest text seen so far (dynamic NTK), an attention that a short text switches
off for good (BigBird), caches of cosines: plain transformers keep them in attributes, buffers and children of modules.
So these are remembered at load, and what was seen to change is put back before each forward: each text then meets the
model as it was loaded. Cost: nothing for models that carry nothing, and for others a few small copies a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_SMALL = 2**20
"""Elements of a tensor that is remembered by value; larger ones by which tensor it is."""
_OWN = frozenset(vars(torch.nn.Module()))
_PLAIN = (bool, int, float, str, type(None), torch.Tensor)


@dataclass(frozen=True, kw_only=True, eq=False)
class Carried:
    """One module as it was when it was remembered."""

    module: torch.nn.Module
    attributes: Mapping[str, Any]
    buffers: Mapping[str, torch.Tensor | None]
    children: Mapping[str, torch.nn.Module | None]

    @classmethod
    def of(cls, module: torch.nn.Module) -> Carried:
        """The module as it is now."""
        return cls(
            module=module,
            attributes={name: _copy(value) for name, value in _attributes(module).items()},
            buffers={name: _copy(value) for name, value in module._buffers.items()},
            children=dict(module._modules),
        )

    def has_changed(self) -> bool:
        """Whether anything of it is another than it was."""
        return (
            not _same(self.attributes, _attributes(self.module))
            or not _same(self.buffers, self.module._buffers)
            or [*self.children.items()] != [*self.module._modules.items()]
        )

    def put_back(self) -> None:
        """Makes the module what it was."""
        for name in _attributes(self.module).keys() - self.attributes.keys():
            delattr(self.module, name)
        self.module.__dict__.update({name: _copy(value) for name, value in self.attributes.items()})
        self.module._buffers.update({name: _copy(value) for name, value in self.buffers.items()})
        self.module._modules.clear()
        self.module._modules.update(self.children)


def remember(model: torch.nn.Module) -> list[Carried]:
    """Every module as it is now."""
    return [Carried.of(module) for module in model.modules()]


def put_back(carried: Iterable[Carried]) -> None:
    """Makes the modules what they were."""
    for one in carried:
        one.put_back()


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Its plain values; not which hooks it has, which are not put back either."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _OWN and isinstance(value, _PLAIN) and "hook" not in name
    }


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) and value.numel() <= _SMALL else value


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.keys() == now.keys() and all(_equal(before[name], now[name]) for name in before)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a is b or a.shape != b.shape or a.dtype != b.dtype or a.numel() > _SMALL:
            return a is b
        return bool(torch.equal(a, b.to(a.device)))
    return type(a) is type(b) and bool(a == b)
