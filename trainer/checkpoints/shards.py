"""Tensors that may lie in shards over the ranks, as FSDP2 holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor


def whole(value: Any) -> Tensor:
    """A value that may lie in shards, whole on every rank; all ranks must ask for it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    return torch.as_tensor(value)


def load_whole(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Weights that every rank has whole, into a model that may lie in shards."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(dict(weights))


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights of a model that lies in shards, on rank 0; all ranks must ask for them.

    A weight that has two names is one tensor here too: whoever writes it writes it once.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    first: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in found:
            found[name] = found[first.setdefault(id(weight), name)]
    return found
