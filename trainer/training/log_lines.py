"""What a loop logs, where nobody sits or several students share a screen: a line a log step, with the time.

In place of transformers' bar, which fills a file with carriage returns, and of its dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from schemas.cli.logs import stamp

_UNSAID = ("total_flos", "epoch")


def log_in_lines(loop: Trainer, name: str = "") -> None:
    """Lines to stdout, behind a student's name where several train."""
    for other in (PrinterCallback, ProgressCallback, LogLines):
        loop.remove_callback(other)
    loop.add_callback(LogLines(name))


class LogLines(TrainerCallback):  # type: ignore[misc]
    """Prints each log of the first process."""

    def __init__(self, name: str) -> None:
        self._name = f"{name}: " if name else ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **keywords: Any) -> None:
        if state.is_world_process_zero:
            told = line_of(state.global_step, state.max_steps, float(state.epoch or 0), logs or {})
            print(f"{stamp()} {self._name}{told}", flush=True)  # noqa: T201


def line_of(step: int, steps: int, epoch: float | None, logs: Mapping[str, Any]) -> str:
    """`step 20/300 epoch 0.2 loss 3.214 kl 2.91 learning_rate 0.0005`."""
    parts = [f"step {step:,}/{steps:,}", *([] if epoch is None else [f"epoch {epoch:.3g}"])]
    return " ".join(
        [*parts, *(f"{key} {_number(value)}" for key, value in logs.items() if key not in _UNSAID)]
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
