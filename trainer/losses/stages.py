"""Stages of one run, one after another: each with its own weights of losses, its learning rate, and what of the student
stays as it is.

A stage is a share of the run's steps, so that which one a step is in is a pure function of the step: a run that goes on
from a checkpoint needs nothing else. A loss that a stage does not name weighs nothing there; it is computed and logged
all the same, so that every stage computes alike and terms can be compared. Evaluations take the last stage's weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.losses.flags import parse_losses
from trainer.losses.loss import Value
from trainer.losses.schedules import exactly

_EDGE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Written `share=0.3 pkd=1 freeze=lm_head.* learning_rate=1e-3`."""

    share: float
    """Of the run's steps."""
    weights: Mapping[str, float]
    settings: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """Parameters that are told, by loss."""
    freeze: tuple[str, ...] = ()
    """Patterns of names of the student's parameters, with `*` and `?`."""
    learning_rate: float | None = None
    """The peak; None is the run's."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"a stage's share is above 0 and at most 1, but got {self.share:g}")
        if not any(self.weights.values()):
            raise ValueError("a stage needs a loss with a weight above 0")
        if bad := [w for w in self.weights.values() if not (math.isfinite(w) and w >= 0)]:
            raise ValueError(f"a stage's weights are finite and not negative, but got {bad[0]}")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"a stage's learning_rate is above 0, but got {rate}")
        if not all(self.freeze):
            raise ValueError("a stage freezes a name that is empty")

    def __str__(self) -> str:
        weights = (f"{name}={exactly(weight)}" for name, weight in self.weights.items())
        words = [f"share={exactly(self.share)}", *weights, *(f"freeze={name}" for name in self.freeze)]
        return " ".join(
            words + ([f"learning_rate={exactly(self.learning_rate)}"] if self.learning_rate else [])
        )


def parse_stages(texts: Sequence[str]) -> tuple[Stage, ...]:
    """From one text a stage; the last takes what the others leave of the steps.

    Raises:
        ValueError: one cannot be read, or they are not all of the steps.
    """
    if len(texts) == 1:
        raise ValueError("one stage is a run without stages")
    found: list[Stage] = []
    for number, text in enumerate(texts, 1):
        rest = 1 - sum(stage.share for stage in found) if number == len(texts) else None
        try:
            found.append(_parse(text, rest))
        except ValueError as error:
            raise ValueError(f"stage {number}: {error}") from error
    return tuple(found)


def check_shares(stages: Sequence[Stage]) -> None:
    """Whether they are all of the steps.

    Raises:
        ValueError: they are not.
    """
    if stages and abs(sum(stage.share for stage in stages) - 1) > _EDGE:
        shares = ", ".join(f"{stage.share:g}" for stage in stages)
        raise ValueError(f"the shares of the stages must sum to 1, but got {shares}")


def stage_at(stages: Sequence[Stage], progress: float) -> int:
    """Which stage a step is in whose share of the run's steps is taken."""
    ends = itertools.accumulate(stage.share for stage in stages[:-1])
    return sum(progress >= end - _EDGE for end in ends)


def first_steps(stages: Sequence[Stage], total: int) -> list[int]:
    """Each stage's first step, in a run of so many."""
    ends = itertools.accumulate(stage.share for stage in stages[:-1])
    return [0, *(math.ceil((end - _EDGE) * total) for end in ends)]


def _parse(text: str, rest: float | None) -> Stage:
    own: dict[str, list[str]] = {"losses": [], "share": [], "freeze": [], "learning_rate": []}
    for word in text.split():
        key, _, value = word.partition("=")
        own[key if key in own else "losses"].append(value if key in own else word)
    for key in ("share", "learning_rate"):
        if len(own[key]) > 1:
            raise ValueError(f"{key} stands twice in {text!r}")
    if not own["share"] and (rest is None or rest <= 0):
        raise ValueError(f"{text!r} has no share of the steps, and none is left")
    weights, settings = parse_losses(own["losses"])
    return Stage(
        share=_number("share", own["share"][0]) if own["share"] else float(rest or 0),
        weights=weights,
        settings=settings,
        freeze=tuple(pattern for one in own["freeze"] for pattern in one.split(",")),
        learning_rate=_number("learning_rate", own["learning_rate"][0]) if own["learning_rate"] else None,
    )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a number, but got {text!r}") from error
