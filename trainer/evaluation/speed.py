"""How large a model is and how fast its forward: in float32, on the device that is named with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.evaluation.held_out import HeldOut


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """How large and how fast a model is."""

    name: str
    parameters: int
    megabytes: float
    """Of the weights in float32, 10^6 bytes."""
    tokens_per_second: float | None
    """Forward only, padding not counted."""


def model_size(
    name: str, model: Any, collation: Collation, held_out: HeldOut, *, seconds: float
) -> ModelSize:
    """What a model costs, on the device where it is; its speed only where `seconds` is above 0."""
    parameters = list(model.parameters())
    speed = None
    if seconds:
        device = parameters[0].device
        speed = tokens_per_second(model, held_out.batches(collation), seconds, device)
    return ModelSize(
        name=name,
        parameters=sum(p.numel() for p in parameters),
        megabytes=sum(p.numel() * p.element_size() for p in parameters) / 1e6,
        tokens_per_second=speed,
    )


@torch.no_grad()
def tokens_per_second(
    model: Any, batches: Iterator[Batch], seconds: float, device: torch.device, most: int = 16
) -> float:
    """Tokens (without padding) that the model's own forward takes in a second, over at most `most` batches, cycled.

    One round of all of them comes first, unmeasured.
    """
    chosen = [batch.to(device) for batch, _ in zip(batches, range(most), strict=False)]
    tokens = [batch.num_tokens for batch in chosen]
    for batch in chosen:
        model(**batch.model_inputs)
    _wait(device)
    seen, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch, count in zip(chosen, tokens, strict=True):
            model(**batch.model_inputs)
            seen += count
        _wait(device)
    return seen / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The device, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
