"""What a training is told of the others that train beside it in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from trainer.training.streams import SharedSides
from trainer.training.turns import Turn


@dataclass(frozen=True, kw_only=True)
class Company:
    """One student's part."""

    name: str
    """What its logs are called."""
    turn: Turn
    sides: SharedSides

    def name_logs(self, loop: Trainer) -> None:
        """Logs go to stdout with the student's name, in place of transformers' own lines and bars without one."""
        for nameless in (PrinterCallback, ProgressCallback):
            loop.remove_callback(nameless)
        loop.add_callback(_NamedLogs(self.name))


class _NamedLogs(TrainerCallback):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self._name = name

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **keywords: Any) -> None:
        told = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in logs.items()}
        told.pop("total_flos", None)
        print(f"{self._name}: {told}", flush=True)  # noqa: T201
