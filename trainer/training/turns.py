"""Several trainings in one process, one at a time: each in a thread of its own, and a turn is taken at each batch.

* The turn goes to whoever stands first in the stream. So all stand within a step of each other, and what is decoded is
  held for no longer than that; one that goes on from an older checkpoint catches up before the others move.
* What a process has once (random numbers, the state that accelerate keeps) is put away with each turn and brought back
  with the next. So a training finds it as if it were alone, and draws the numbers that it would draw alone.

Cost: some hundredths of a millisecond a turn. Threads, since `Trainer` owns its loop; it releases nothing in between.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState

Place = tuple[int, int, int]
"""How many optimizer steps are done; 0 in the evaluation after them, and 1 before the next; the evaluation's batch."""
_BEFORE: Place = (-1, 0, 0)
_ONCE = (AcceleratorState, GradientState)
"""Accelerate's values of which a process has one; what says which device and rank it is stays."""


class _State(NamedTuple):
    """What a process has once and a training changes."""

    python: Any
    numpy: Any
    torch: Any
    device: Any
    accelerate: tuple[dict[str, Any], ...]

    @classmethod
    def now(cls) -> _State:
        device = _device()
        return cls(
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
            None if device is None else device.get_rng_state(),
            tuple(dict(kind._shared_state) for kind in _ONCE),
        )

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.device is not None:
            torch.get_device_module().set_rng_state(self.device)
        for kind, values in zip(_ONCE, self.accelerate, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(values)


@contextmanager
def undisturbed() -> Iterator[None]:
    """What the block changes of what a process has once is brought back."""
    state = _State.now()
    try:
        yield
    finally:
        state.restore()


def _device() -> Any:
    """Torch's module of the accelerator, whichever it is; None without one, and before it is first used."""
    if not torch.accelerator.is_available():
        return None
    module = torch.get_device_module()
    is_used = getattr(module, "is_initialized", lambda: True)()
    return module if is_used else None


class Turns:
    """Of so many trainings. Each begins with what the process has when this is made."""

    def __init__(self, number: int) -> None:
        self._changed = threading.Condition()
        self._places = dict.fromkeys(range(number), _BEFORE)
        self._states = dict.fromkeys(range(number), _State.now())
        self._holder = self._first()

    def turn(self, number: int) -> Turn:
        """What one training holds."""
        return Turn(self, number)

    def take(self, number: int) -> None:
        """Waits for a training's first turn."""
        with self._changed:
            self._await(number)

    def pass_on(self, number: int, place: Place) -> None:
        """Lets all go first who stand before this place."""
        with self._changed:
            self._places[number] = place
            if self._first() == number:
                return
            self._states[number] = _State.now()
            self._hand_over()
            self._await(number)

    def leave(self, number: int) -> None:
        """Takes part no longer."""
        with self._changed:
            del self._places[number], self._states[number]
            self._hand_over()

    def _first(self) -> int | None:
        return min(self._places, key=lambda number: (self._places[number], number), default=None)

    def _hand_over(self) -> None:
        self._holder = self._first()
        self._changed.notify_all()

    def _await(self, number: int) -> None:
        self._changed.wait_for(lambda: self._holder == number)
        self._states[number].restore()


class Turn:
    """One training's part in `Turns`."""

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns, self._number = turns, number

    def take(self) -> None:
        """Waits until this training may begin."""
        self._turns.take(self._number)

    def before_step(self, steps: int) -> None:
        """Waits until all others have done so many steps, and the evaluation after them."""
        self._turns.pass_on(self._number, (steps, 1, 0))

    def before_batch(self, steps: int, batch: int) -> None:
        """Waits until all others have done so many steps, and those who evaluate then have come to this batch."""
        self._turns.pass_on(self._number, (steps, 0, batch))

    def leave(self) -> None:
        """Gives the turn to the others for good. Call it in any case."""
        self._turns.leave(self._number)
