"""The weights that a run does not change: a plain model's, or those that its LoRA adapters stand beside."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from torch import Tensor, uint8

_TRAINED = re.compile(r"\.lora_\w+\.|\.(original_module|modules_to_save)\.")
"""What PEFT puts into a model to be trained, and the parts of the base that are trained instead of their own."""


def base_weights(model: Any) -> dict[str, Tensor]:
    """A model's weights by name; of one with adapters, its frozen weights by the names that they had before."""
    return {
        name.replace(".base_layer.", "."): weight
        for name, weight in model.state_dict().items()
        if _TRAINED.search(name) is None
    }


def weights_hash(model: Any) -> str:
    """Hash of a model's base weights by name, in hex; about a second a gigabyte."""
    found = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(base_weights(model).items()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(uint8).numpy().data)
    return found.hexdigest()
