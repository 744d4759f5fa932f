"""What stages do to a run beside its weights of losses: parameters that stay as they are, and the learning rate.

What a stage freezes has its gradient taken away after each backward pass. Every stage computes alike that way, under
DDP, FSDP and compiled blocks too, and an optimizer leaves a parameter without gradient alone: no weight decay, no
momentum. Cost: a frozen stage takes as long as another. The learning rate has in each stage a whole schedule of the
run's kind, over the stage's own steps.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from schemas.errors import StudentError, UsageError
from trainer.losses.registry import LOSSES
from trainer.losses.stages import Stage, first_steps
from trainer.training.settings import word

_NEAREST = 3


def check_stages(stages: Sequence[Stage], student: nn.Module, arguments: Any, total: int) -> None:
    """Whether each stage has a step, parameters of the names that it freezes, and something to train.

    Raises:
        UsageError: a stage has no step, or the learning rate follows what evaluations find.
        StudentError: a name is none of the student's, or nothing is left to train.
    """
    if not stages:
        return
    firsts = [*first_steps(stages, total), total]
    for number, (first, end) in enumerate(itertools.pairwise(firsts), 1):
        if first >= end:
            raise UsageError(
                f"stage {number} of --stages has no step",
                got=f"a share of {stages[number - 1].share:g} of {total} steps",
                do="Raise its share, or --max_steps",
            )
    _rates(stages, arguments, total)
    for number, stage in enumerate(stages, 1):
        frozen = {id(student.get_parameter(name)) for name in frozen_names(stage, student)}
        is_left = any(weight.requires_grad and id(weight) not in frozen for weight in student.parameters())
        if not is_left and not any(LOSSES[name].pooled for name, weight in stage.weights.items() if weight):
            raise StudentError(
                f"stage {number} of --stages freezes all that is trained",
                got=" ".join(stage.freeze),
                do="Freeze less; only projections of features can be trained beside a frozen student",
            )


def frozen_names(stage: Stage, student: nn.Module) -> list[str]:
    """What a stage freezes of what is trained. A parameter that two layers share is frozen by either's name.

    Raises:
        StudentError: a pattern is no name of what is trained.
    """
    named = dict(student.named_parameters(remove_duplicate=False))
    trained = [name for name, weight in named.items() if weight.requires_grad]
    found: dict[str, None] = {}
    for pattern in stage.freeze:
        names = fnmatch.filter(trained, pattern)
        if not names:
            nearest = difflib.get_close_matches(pattern, trained, _NEAREST, cutoff=0.0)
            raise StudentError(
                "a stage freezes what is no parameter that is trained",
                expected=f"a name as {', '.join(nearest)}, with * for any part",
                got=pattern,
                do="Correct freeze in --stages, or leave it out",
            )
        found |= dict.fromkeys(names)
    return list(found)


def staged_scheduler(
    stages: Sequence[Stage], optimizer: torch.optim.Optimizer, arguments: Any, total: int
) -> LambdaLR:
    """The learning rate of a run with stages."""
    firsts, rates = first_steps(stages, total), _rates(stages, arguments, total)

    def factor(step: int) -> float:
        stage = bisect_right(firsts, step) - 1
        return rates[stage](step - firsts[stage])

    return LambdaLR(optimizer, factor)


def _rates(stages: Sequence[Stage], arguments: Any, total: int) -> list[Callable[[int], float]]:
    """Each stage's learning rate by its own steps, as a factor of the run's.

    Raises:
        UsageError: the run's kind of schedule is no function of the step.
    """
    firsts = [*first_steps(stages, total), total]
    lengths = [end - first for first, end in itertools.pairwise(firsts)]
    return [_rate(stage, arguments, length) for stage, length in zip(stages, lengths, strict=True)]


def _rate(stage: Stage, arguments: Any, steps: int) -> Callable[[int], float]:
    usual = float(arguments.learning_rate)
    peak = stage.learning_rate or usual
    # transformers gives its shapes with an optimizer alone, of which they read the peak
    alone = torch.optim.SGD([torch.zeros(1)], lr=peak)
    kwargs: Mapping[str, Any] | None = arguments.lr_scheduler_kwargs
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer=alone,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=None if kwargs is None else dict(kwargs),
    )
    if not isinstance(scheduler, LambdaLR):
        raise UsageError(
            "--stages need a learning rate that goes by the step",
            got=f"--lr_scheduler_type {word(arguments.lr_scheduler_type)}",
            do="Use --lr_scheduler_type cosine, linear or constant",
        )
    (shape,) = scheduler.lr_lambdas
    return lambda step: float(shape(step)) * peak / usual
