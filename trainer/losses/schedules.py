"""How a loss's weight changes in the course of a run, by a factor that is a pure function of the share of steps taken;
and how the temperature does, which goes between 1, where that is 0, and its own, where it is 1.

* `linear:A:B`, `cosine:A:B`: from A at the first step to B at the last
* `hold:W:D`: rises from 0 to 1 over the share W of the steps, stays, and from the share D on falls to 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["linear", "cosine", "hold"]


def exactly(number: float) -> str:
    """A number as short as it can be told and read back: what a run's identity holds."""
    return short if float(short := f"{number:g}") == number else repr(number)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A shape and its two numbers."""

    shape: Shape
    first: float
    second: float

    def __post_init__(self) -> None:
        numbers = (self.first, self.second)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"a schedule's numbers must be finite and not negative, but got {numbers}")
        if self.shape == "hold" and not self.first <= self.second <= 1:
            raise ValueError(f"hold:W:D needs W <= D <= 1, shares of the steps, but got {numbers}")
        if self.shape != "hold" and not any(numbers):
            raise ValueError("a schedule from 0 to 0 is no schedule")

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """From `linear:1:0`.

        Raises:
            ValueError: it cannot be read.
        """
        shape, *numbers = text.split(":")
        if shape not in get_args(Shape) or len(numbers) != 2:
            raise ValueError(f"{text!r} is none of linear:A:B, cosine:A:B and hold:W:D")
        try:
            first, second = (float(number) for number in numbers)
        except ValueError as error:
            raise ValueError(f"{text!r} needs two numbers") from error
        return cls(shape=shape, first=first, second=second)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.shape}:{exactly(self.first)}:{exactly(self.second)}"

    @property
    def most(self) -> float:
        """The largest factor."""
        return 1.0 if self.shape == "hold" else max(self.first, self.second)

    def factor(self, progress: float) -> float:
        """At a share of the steps, from 0 to 1."""
        if self.shape == "linear":
            return self.first + (self.second - self.first) * progress
        if self.shape == "cosine":
            return self.second + (self.first - self.second) * (1 + math.cos(math.pi * progress)) / 2
        if progress < self.first:
            return progress / self.first
        falls = self.second < 1 and progress >= self.second
        return (1 - progress) / (1 - self.second) if falls else 1.0


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """A temperature that changes in the course of so many steps."""

    temperature: float
    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.temperature == 1:
            raise ValueError(f"a schedule goes between 1 and another temperature, but got {self.temperature}")
        if self.steps < 1:
            raise ValueError(f"a schedule needs steps, but got {self.steps}")
        if self.schedule.most > 1:
            raise ValueError(
                f"the temperature goes between 1 and its own: factors are at most 1, but got {self.schedule}"
            )
        if self.schedule.shape != "hold" and self.schedule.first == self.schedule.second:
            raise ValueError(f"a temperature's schedule goes from one to another, but got {self.schedule}")

    def at(self, step: int) -> float:
        """At a step, the first of which is 0; beyond the last as there."""
        return 1 + (self.temperature - 1) * self.schedule.factor(min(1.0, step / self.steps))
