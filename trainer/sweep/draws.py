"""What a trial's parameters are: a pure function of the seed, its number, and what became of the trials before it.

Each draw has a sampler of its own, seeded by the sweep's seed and the trial's number, over a copy of the study in
memory. So nothing that a killed process held decides anything, and a study that goes on draws what it would have drawn.
Cost: the copy of the trials, some tens of microseconds each.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from schemas.errors import UsageError
from trainer.sweep.domains import Value
from trainer.sweep.space import Space
from trainer.tasks.student_task import Goal

_MOST_COMBINATIONS = 100_000


def draw(
    space: Space, before: Sequence[FrozenTrial], *, sampler: str, seed: int, number: int, goal: Goal
) -> dict[str, Value]:
    """The values of trial `number`, from those that were drawn before it; some of them may be running still."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if sampler == "grid":
        return _grid_values(space, seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction=goal.direction, sampler=_sampler(sampler, seed, number))
    study.add_trials(before)
    drawn = study.ask({p.name: p.domain.distribution for p in space.parameters})
    return {p.name: p.domain.told(drawn.params[p.name]) for p in space.parameters}


def grid_size(space: Space) -> int:
    """Combinations of all parameters' points.

    Raises:
        UsageError: a range does not say which points, or there are too many.
    """
    found = math.prod(len(points) for points in grid_points(space).values())
    if found > _MOST_COMBINATIONS:
        most = f"at most {_MOST_COMBINATIONS:,} combinations"
        raise UsageError("the grid is too large", where=space.where, expected=most, got=f"{found:,}")
    return found


def grid_points(space: Space) -> Mapping[str, Sequence[Value]]:
    """Each parameter's points.

    Raises:
        UsageError: a range does not say which.
    """
    found = {}
    for parameter in space.parameters:
        try:
            found[parameter.name] = parameter.domain.grid
        except ValueError as error:
            raise UsageError(f"{parameter.name}: {error}", where=parameter.where) from error
    return found


def _grid_values(space: Space, seed: int, number: int) -> dict[str, Value]:
    """In an order drawn by the seed, so that a part of the grid is a sample of it."""
    points = grid_points(space)
    every = list(itertools.product(*points.values()))
    order = np.random.default_rng(seed).permutation(len(every))
    return dict(zip(points, every[order[number]], strict=True))


def _sampler(name: str, seed: int, number: int) -> BaseSampler:
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "random":
        return RandomSampler(seed=own)
    # Of trials that run beside this one it is taken for granted that they are bad: else all would be drawn alike.
    return TPESampler(seed=own, constant_liar=True)
