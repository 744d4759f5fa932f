"""A student that begins as the teacher with fewer layers, as DistilBERT did (arXiv:1910.01108, section 3).

Of L layers, n are kept: numbers `i * L // n` for i from 0 to n - 1, evenly spaced and with the first (6 to 3: 0, 2, 4;
12 to 4: 0, 3, 6, 9). Embeddings, final norm and head are taken as they are. The student is built from its own config
and filled, so whatever its layers derive from their number (kind of attention, `layer_idx`) is its own.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import StudentError, UsageError

_PREFIX = "shrink:"


def parse_shrink(name: str) -> int | None:
    """The number of layers in `shrink:layers=3`; None for a student that is named otherwise.

    Raises:
        UsageError: it begins with `shrink:` and goes on wrongly.
    """
    if not name.startswith(_PREFIX):
        return None
    match = re.fullmatch(r"layers=([1-9]\d*)", name.removeprefix(_PREFIX))
    if match is None:
        raise UsageError("--student shrinks how?", expected="shrink:layers=N", got=name)
    return int(match[1])


def kept_layers(teacher_layers: int, layers: int) -> list[int]:
    """Which of the teacher's layers a student of `layers` layers begins with."""
    return [index * teacher_layers // layers for index in range(layers)]


def shrunk(teacher: Any, layers: int, kind: Any) -> Any:
    """A new model with `layers` of the teacher's layers.

    Raises:
        StudentError: it has fewer layers, or they cannot be found or moved.
    """
    name, total = find_layers(teacher)
    if layers > total:
        raise StudentError("the teacher has fewer layers", expected=f"at most {total}", got=layers)
    kept = kept_layers(total, layers)
    student = kind.from_config(_config(teacher.config, kept, total), dtype=torch.float32)
    weights = _renumbered(teacher.state_dict(), name, kept)
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise StudentError(
            f"the layers of {type(teacher).__name__} cannot be moved",
            got=str(error).splitlines()[-1].strip(),
            do="Start the student from a config .json",
        ) from error
    return student


def find_layers(model: nn.Module) -> tuple[str, int]:
    """Name and length of the one list of modules that is as long as the config counts hidden layers.

    Raises:
        StudentError: there is none, or more than one.
    """
    config: Any = model.config
    total = int(config.num_hidden_layers)
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total and ".0." not in f".{name}."
    ]
    if len(lists) != 1:
        raise StudentError(
            f"the layers of {type(model).__name__} cannot be told",
            expected=f"one list of {total} modules",
            got=", ".join(lists) or "none",
            do="Start the student from a config .json",
        )
    return lists[0], total


def _config(teacher: Any, kept: list[int], total: int) -> Any:
    """The teacher's config with fewer layers; lists with one item a layer keep those of the kept layers."""
    config = copy.deepcopy(teacher)
    for key, value in teacher.to_dict().items():
        per_layer = isinstance(value, list) and len(value) == total
        if per_layer and key != "architectures" and not key.endswith("token_id"):
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)
    return config


def _renumbered(weights: dict[str, Tensor], layers: str, kept: list[int]) -> dict[str, Tensor]:
    """The weights outside the layers, and those of kept layers under their new numbers."""
    numbers = {old: new for new, old in enumerate(kept)}
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.(.*)")
    found = {}
    for name, tensor in weights.items():
        match = pattern.fullmatch(name)
        if match is None:
            found[name] = tensor
        elif int(match[1]) in numbers:
            found[f"{layers}.{numbers[int(match[1])]}.{match[2]}"] = tensor
    return found
