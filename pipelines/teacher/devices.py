"""On which device a teacher is asked."""

from __future__ import annotations

import torch

from pipelines.engine.device_assignment import claim_number
from schemas.errors import UsageError


def pick_device(wanted: str) -> torch.device:
    """`auto` takes an accelerator where there is one; `cuda` insists.

    Raises:
        UsageError: there is no such device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device", do="Say --device cpu, or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def own_device(device: torch.device, run: str) -> torch.device:
    """This process's device: worker i of a run takes `cuda:i`, modulo the devices there are."""
    if device.type != "cuda" or torch.cuda.device_count() == 1:
        return device
    return torch.device("cuda", claim_number(run) % torch.cuda.device_count())
