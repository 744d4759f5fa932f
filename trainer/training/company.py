"""What a training is told of the others that train beside it in this process."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Trainer

from trainer.training.log_lines import log_in_lines
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
        log_in_lines(loop, self.name)
