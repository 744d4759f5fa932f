"""What callbacks remember, beside a checkpoint: an early stopping's patience is the undisturbed run's after a resume.

Transformers would make new objects of what is stored, behind all others; here the caller's own objects are given back
what they were, in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.trainer_callback import ExportableState, TrainerState


def note(state: TrainerState, callbacks: Sequence[Any]) -> None:
    """Puts what each remembers into the trainer's state; of several of one class each."""
    found: dict[str, list[Any]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            found.setdefault(type(callback).__name__, []).append(callback.state())
    state.stateful_callbacks |= found


def restore(state: TrainerState, callbacks: Sequence[Any]) -> None:
    """Gives each what one of its class remembered; new ones are as they are."""
    left = {name: list(kept) for name, kept in state.stateful_callbacks.items() if isinstance(kept, list)}
    for callback in callbacks:
        if isinstance(callback, ExportableState) and (kept := left.get(type(callback).__name__)):
            for name, value in kept.pop(0).get("attributes", {}).items():
                setattr(callback, name, value)
