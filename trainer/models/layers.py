"""A model's layers: where they stand, what kind each is, and which of them a smaller model begins with.

Layers of one kind have the same modules, shapes and settings, and the same items in the config's per-layer lists. Each
kind is kept in its proportion. Where the teacher's first n layers have that proportion, the student repeats their
pattern, its layers as evenly spaced in the teacher as that allows (so a config's periods stay true); in a model of one
kind it is numbers `i * L // n`. Else of each kind those are kept that are evenly spaced.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from schemas.errors import StudentError

_NUMBER = re.compile(
    r"idx|index|(layer|block)_?(id|num|number)$|^(id|number|seed|training)$|num_(hidden_)?layers$"
)
"""Attributes that say where a layer stands, and among how many: no part of its kind."""
_NOT_PER_LAYER = re.compile(
    r"token_?ids?$|tokens$|^architectures$|_section$|label|_shape$|_sizes?$|multipliers$"
)
_FEW = 4
"""Distinct numbers of a per-layer list up to which they make kinds; more are settings, each layer's own."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The layers of a model."""

    name: str
    """Of their list, in the module that was searched."""
    modules: tuple[nn.Module, ...]
    signatures: tuple[Hashable, ...]
    """What each layer is made of."""
    settings: Mapping[str, Sequence[str]]
    """What the config's lists say of each."""

    @property
    def kinds(self) -> tuple[Hashable, ...]:
        """Each layer's kind: what it is made of, with what the config says of it."""
        said = zip(*self.settings.values(), strict=True) if self.settings else [()] * len(self.signatures)
        return tuple(zip(self.signatures, said, strict=True))


def find_stack(model: nn.Module, config: Any, key: str | None = None) -> Stack:
    """The one list of modules that is as long as the config counts layers, under `key` where that is told.

    Raises:
        StudentError: there is none, or more than one.
    """
    total = num_layers(config, model, key)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    }
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        raise StudentError(
            f"the layers of {type(model).__name__} cannot be told",
            expected=f"one list of {total} modules",
            got=", ".join(outermost) or "none",
            do="Start the student from a config .json",
        )
    modules = tuple(found[outermost[0]])
    lists = per_layer_lists(config.to_dict(), total)
    return Stack(
        name=outermost[0],
        modules=modules,
        signatures=tuple(map(_signature, modules)),
        settings={key: [*map(str, values)] for key, values in lists.items() if _makes_kinds(values)},
    )


def count_key(config: Any) -> str:
    """What the config calls its number of layers: a decoder that was half of an encoder-decoder has its own."""
    return "decoder_layers" if hasattr(config, "decoder_layers") else "num_hidden_layers"


def num_layers(config: Any, model: nn.Module, key: str | None = None) -> int:
    """How many layers the config counts.

    Raises:
        StudentError: it does not count them.
    """
    count = getattr(config, key or count_key(config), None)
    if not isinstance(count, int):
        raise StudentError(
            f"the layers of {type(model).__name__} cannot be told",
            expected="a config with num_hidden_layers",
            do="Start the student from a config .json",
        )
    return count


def per_layer_lists(values: Mapping[str, Any], total: int) -> dict[str, list[Any]]:
    """The config's lists with one item a layer."""
    return {
        key: list(value)
        for key, value in values.items()
        if isinstance(value, list | tuple)
        and len(value) == total
        and not _NOT_PER_LAYER.search(key)
        and not is_numbers(value, total)
    }


def is_numbers(value: Any, total: int) -> bool:
    """Whether a list names layers by their numbers."""
    if not isinstance(value, list | tuple) or not value or not all(type(item) is int for item in value):
        return False
    rising = all(a < b for a, b in pairwise(value))
    return rising and value[0] >= 0 and value[-1] < total and not (len(value) == 2 and total == 2)


def kept_layers(kinds: tuple[Hashable, ...], layers: int) -> list[int]:
    """Which of the teacher's layers, given each one's kind, a student of `layers` layers begins with.

    Raises:
        StudentError: there are fewer layers, or more kinds.
    """
    if layers > len(kinds):
        raise StudentError("the teacher has fewer layers", expected=f"at most {len(kinds)}", got=layers)
    members: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        members.setdefault(kind, []).append(index)
    if layers < len(members):
        raise StudentError(
            f"the teacher's layers are of {len(members)} kinds, and each must be kept",
            expected=f"at least {len(members)}",
            got=layers,
        )
    shares = _shares([*map(len, members.values())], layers)
    pattern = kinds[:layers]
    if all(pattern.count(kind) == share for kind, share in zip(members, shares, strict=True)):
        return _matched(kinds, pattern)
    kept = []
    for found, wanted in zip(members.values(), shares, strict=True):
        first = found[0] == 0  # its first layer is kept, of other kinds the last
        ends = [
            place * len(found) // wanted if first else (place + 1) * len(found) // wanted - 1
            for place in range(wanted)
        ]
        kept += [found[end] for end in ends]
    return sorted(kept)


def _matched(kinds: Sequence[Hashable], pattern: Sequence[Hashable]) -> list[int]:
    """Rising numbers of layers of these kinds, the nearest to even spacing: the best way to each, place by place."""
    ways: dict[int, tuple[int, tuple[int, ...]]] = {-1: (0, ())}
    for place, kind in enumerate(pattern):
        even = place * len(kinds) // len(pattern)
        further = {}
        for index in (index for index, found in enumerate(kinds) if found == kind):
            before = [way for last, way in ways.items() if last < index]
            if before:
                cost, kept = min(before)
                further[index] = cost + (index - even) ** 2, (*kept, index)
        ways = further
    return list(min(ways.values())[1])


def _shares(counts: Sequence[int], layers: int) -> list[int]:
    """How many of each kind, in proportion: at least one, the rest by largest remainder."""
    total = sum(counts)
    shares = [max(1, count * layers // total) for count in counts]
    while sum(shares) != layers:
        change = 1 if sum(shares) < layers else -1
        lacks = [
            (count * layers / total - share) * change for count, share in zip(counts, shares, strict=True)
        ]
        fits = [lack for lack, share in zip(lacks, shares, strict=True) if change > 0 or share > 1]
        shares[lacks.index(max(fits))] += change
    return shares


def _makes_kinds(values: Sequence[Any]) -> bool:
    plain = all(isinstance(value, bool | int | float | str) or value is None for value in values)
    return plain and (len(set(values)) <= _FEW or all(isinstance(value, str) for value in values))


def _signature(module: nn.Module) -> Hashable:
    """Classes, shapes and settings of a layer; not its weights, and not where it stands."""
    parts: list[Hashable] = []
    for name, part in module.named_modules():
        settings = [
            (key, value)
            for key, value in vars(part).items()
            if isinstance(value, bool | int | str) and not key.startswith("_") and not _NUMBER.search(key)
        ]
        shapes = [
            (key, tuple(tensor.shape))
            for key, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        ]
        parts.append((name, type(part).__qualname__, *sorted(settings), *sorted(shapes)))
    return tuple(parts)
