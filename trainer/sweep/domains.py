"""What a parameter of a sweep may be: a range of numbers, or one of several values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

DIGITS = 4
"""A drawn number has so many significant digits: what a table shows is what was run."""
_SCALES = ("uniform", "log")
_KEYS = {*_SCALES, "step", "points"}

Value = float | int | str
"""A number of a range, or the label of a choice."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both of them possible."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    step: float | None = None
    points: int | None = None
    """In a grid: so many, evenly on the scale, both ends among them."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range goes from a number to a larger one, and not [{self.low}, {self.high}]")
        if self.is_log and self.low <= 0:
            raise ValueError(f"a range on a logarithmic scale begins above 0, and not at {self.low}")
        if self.step is not None and (self.is_log or not 0 < self.step <= self.high - self.low):
            raise ValueError(f"a step lies within its uniform range, and is not {self.step}")
        if self.points is not None and self.points < 2:
            raise ValueError(f"a grid has at least 2 points of a range, and not {self.points}")
        if self.is_whole and not all(float(n).is_integer() for n in (self.low, self.high, self.step or 1)):
            raise ValueError("its flag takes whole numbers")

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), self.is_log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.is_log, self.step)

    @property
    def edges(self) -> tuple[Value, ...]:
        """Values by which it is tried whether the range can be."""
        return self.told(self.low), self.told(self.high)

    @property
    def grid(self) -> tuple[Value, ...]:
        """Its points, rising.

        Raises:
            ValueError: neither step nor points say which.
        """
        if self.points is None and self.step is None:
            raise ValueError("a grid needs to know which values: add `points: N`, or a list of values")
        if self.points is None:
            values = np.arange(self.low, self.high + (self.step or 1) / 1e6, self.step)
        else:
            space = np.geomspace if self.is_log else np.linspace
            values = space(self.low, self.high, self.points)
        return tuple(dict.fromkeys(self.told(float(value)) for value in values))

    def told(self, number: int | float) -> Value:
        """A number as a trial has it: whole, or of few digits; within the range."""
        if self.is_whole:
            return round(number)
        if self.step is not None:
            return float(f"{number:.12g}")
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def value(self, told: Value) -> Any:
        """What its flag is given."""
        return told

    def __str__(self) -> str:
        kind = "log" if self.is_log else "uniform"
        rest = f", step {self.step:g}" if self.step else ""
        return f"{kind} from {self.low:g} to {self.high:g}{rest}" + (
            f", {self.points} points" if self.points else ""
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values, each under a label that a table shows."""

    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("a list of values holds at least one")

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        return CategoricalDistribution(tuple(self.options))

    @property
    def edges(self) -> tuple[Value, ...]:
        """All its labels."""
        return tuple(self.options)

    @property
    def grid(self) -> tuple[Value, ...]:
        """All its labels."""
        return tuple(self.options)

    def told(self, label: Any) -> Value:
        """The label itself."""
        return str(label)

    def value(self, told: Value) -> Any:
        """What its flag is given."""
        return self.options[str(told)]

    def __str__(self) -> str:
        return " | ".join(self.options)


Domain = Range | Choice


def is_range(told: Any) -> bool:
    """Whether a mapping is a range, and not the value of a flag."""
    return isinstance(told, Mapping) and any(name in told for name in _SCALES)


def parse_range(told: Mapping[str, Any], *, is_whole: bool) -> Range:
    """Of `{uniform: [0, 1]}` or `{log: [1e-5, 1e-3], points: 3}`.

    Raises:
        ValueError: it cannot be read, or is no range.
    """
    scales = [name for name in _SCALES if name in told]
    if len(scales) != 1 or set(told) - _KEYS:
        raise ValueError("a range is {uniform: [LOW, HIGH]} or {log: [LOW, HIGH]}, with `step` or `points`")
    ends = told[scales[0]]
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"{scales[0]} has two numbers, [LOW, HIGH], and not {ends}")
    points = told.get("points")
    return Range(
        low=_number(ends[0]),
        high=_number(ends[1]),
        is_log=scales[0] == "log",
        is_whole=is_whole,
        step=None if told.get("step") is None else _number(told["step"]),
        points=None if points is None else int(_number(points)),
    )


def parse_choice(name: str, told: list[Any]) -> Choice:
    """Of a list of a flag's values, each as a file of `train`'s flags has it, or a mapping that brings others along.

    Raises:
        ValueError: a range stands in it, or a value twice.
    """
    options: dict[str, Any] = {}
    for value in told:
        if _holds_range(value):
            raise ValueError("a range cannot stand in a list: a value of a list is whole")
        text = _own_label(name, value)
        if text in options:
            raise ValueError(f"{text} stands twice in a list")
        options[text] = value
    return Choice(options=options)


def _own_label(name: str, value: Any) -> str:
    """The flag's own value first, where it brings others along."""
    if not isinstance(value, dict) or name not in value:
        return label(value)
    others = {key: item for key, item in value.items() if key != name}
    return " ".join(part for part in (label(value[name]), label(others)) if part)


def label(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={label(item)}" for name, item in value.items())
    return " ".join(map(label, value)) if isinstance(value, list) else str(value)


def _holds_range(value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_range(value) or any(map(_holds_range, value.values()))
    return isinstance(value, list) and any(map(_holds_range, value))


def _number(value: Any) -> float:
    """YAML reads 1e-5, without a point, as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value} is no number")
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"{value} is no number") from error
