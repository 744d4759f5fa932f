"""What a training is told of the others that train beside it in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transformers import Trainer, TrainerCallback

from trainer.students.student import Student
from trainer.training.log_lines import LogLines, log_in_lines
from trainer.training.streams import SharedSides
from trainer.training.turns import Turn


class Pruned(Exception):  # noqa: N818  (nothing is wrong: others do better)
    """Whoever looks on has seen enough of a student: it is trained no further."""


@runtime_checkable
class Observer(Protocol):
    """Who looks on while a student is trained."""

    def after_step(self, student: Student, step: int, total: int) -> None:
        """Called when a step is done, in the student's own turn; what it draws and changes it brings back.

        Raises:
            Pruned: the student is trained no further, and not saved.
        """


@dataclass(frozen=True, kw_only=True)
class Company:
    """One student's part."""

    name: str
    """What its logs are called."""
    turn: Turn
    sides: SharedSides
    observer: Observer | None = None

    def join(self, loop: Trainer) -> None:
        """Logs go to stdout with the student's name, or to nobody where an observer looks on."""
        log_in_lines(loop, self.name)
        if self.observer is not None:
            loop.remove_callback(LogLines)
            loop.add_callback(_Observed(self.observer, loop))


class _Observed(TrainerCallback):  # type: ignore[misc]
    def __init__(self, observer: Observer, loop: Any) -> None:
        self._observer, self._loop = observer, loop

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._observer.after_step(self._loop.student, state.global_step, state.max_steps)
