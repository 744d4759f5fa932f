"""What a benchmark found, told to people and, where `make bench` asks for it, to a file: a ratio with its aim."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

TOLD_TO = "TEACHONCE_RATIOS"
"""The environment's name for the file."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One figure. An aim is at most, or at least; None: there is none, it is told alone."""

    name: str
    value: float
    aim: float | None = None
    at_least: bool = False

    @property
    def falls_short(self) -> bool:
        if self.aim is None:
            return False
        return self.value < self.aim if self.at_least else self.value > self.aim

    @property
    def aimed(self) -> str:
        if self.aim is None:
            return ""
        return f"{'at least' if self.at_least else 'at most'} {self.aim:g}"


def tell(name: str, value: float, aim: float | None = None, *, at_least: bool = False) -> None:
    """Prints a figure, and writes it down where that is asked."""
    ratio = Ratio(name=name, value=value, aim=aim, at_least=at_least)
    print(f"{name:<52} {value:8.3f}   {f'(aim: {ratio.aimed})' if ratio.aimed else ''}", flush=True)
    if TOLD_TO in os.environ:
        with Path(os.environ[TOLD_TO]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(ratio)) + "\n")
