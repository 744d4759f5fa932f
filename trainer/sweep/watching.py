"""How a trial is measured: on its way, where it may be given up, and at its end as `teachonce evaluate` does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from schemas.cache import Cache
from schemas.errors import TrainingError
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.evaluation import Evaluated, evaluate, metrics_on
from trainer.evaluation.held_out import HeldOut
from trainer.students.student import Student
from trainer.sweep.study import TrialOutcome
from trainer.tasks.student_task import Goal, Measured
from trainer.training.arguments import StudentArguments
from trainer.training.company import Pruned
from trainer.training.config import TrainConfig
from trainer.training.turns import undisturbed

_log = logging.getLogger(__name__)
BATCH_SIZE = 16
"""Rows of a batch of an evaluation."""
WHOLE = 1000
"""Optuna has whole numbers for steps: of a trial's own steps so many parts, since trials may have more or fewer."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Looks on while one trial is trained."""

    number: int
    trial: optuna.trial.Trial
    goal: Goal
    shares: tuple[float, ...]
    """Of its steps, after which it is measured and may be given up."""
    known: Mapping[int, float]
    """What was measured before a killed process began again, by the part of its steps."""
    measure: Callable[[Student], Mapping[str, Any]]

    def after_step(self, student: Student, step: int, total: int) -> None:
        """Measures, where it is time to.

        Raises:
            Pruned: others were better by then.
            TrainingError: the objective is no number.
        """
        due = [share for share in self.shares if max(1, round(share * total)) == step]
        if due and step < total:
            self._judge(student, due[-1])

    def _judge(self, student: Student, share: float) -> None:
        part = round(share * WHOLE)
        if part not in self.known:
            value = value_of(self.measure(student), self.goal)
            self.trial.report(value, part)
            _log.info(
                "trial %d: %s %.4g after %.0f%% of its steps",
                self.number,
                self.goal.metric,
                value,
                100 * share,
            )
        if self.trial.should_prune():
            raise Pruned(f"given up after {100 * share:.0f}% of its steps")


def measurer(
    cache: Cache, config: TrainConfig, arguments: StudentArguments
) -> Callable[[Student], Mapping[str, Any]]:
    """Measures a student that is being trained, and leaves it and all random numbers as they were."""
    held_out = HeldOut(cache=cache, eval_fraction=config.eval_fraction, batch_size=BATCH_SIZE)

    def measure(student: Student) -> Mapping[str, Any]:
        modes = [(module, module.training) for module in student.model.modules()]
        student.model.eval()
        try:
            with undisturbed():
                return metrics_on(
                    Measured(
                        model=student.model,
                        tokenizer=student.tokenizer,
                        spec=cache.spec,
                        held_out=held_out,
                        collation=student.collation(),
                        device=arguments.device,
                        embedder=student.embedder,
                    )
                )
        finally:
            for module, was_training in modes:
                module.training = was_training

    return measure


def evaluated(config: TrainConfig, arguments: StudentArguments) -> Evaluated:
    """Of a finished trial's folder, on the documents that its training held out."""
    return evaluate(
        EvaluateConfig(
            cache=next(iter(config.sources)),
            student=str(arguments.output_dir),
            cache_version=config.cache_version,
            batch_size=BATCH_SIZE,
            speed_seconds=0.0,
            device=str(arguments.device),
            local_cache=config.local_cache,
            local_cache_gb=config.local_cache_gb,
        )
    )


def outcome_of(found: Evaluated, goal: Goal, steps: int) -> TrialOutcome:
    """Of a trial that came to its end.

    Raises:
        TrainingError: the objective is no number.
    """
    return TrialOutcome(
        state="complete",
        value=value_of(found.metrics, goal),
        metrics={name: value for name, value in found.metrics.items() if not isinstance(value, list)},
        parameters=found.models[0].parameters,
        steps=steps,
    )


def value_of(metrics: Mapping[str, Any], goal: Goal) -> float:
    """The objective's value.

    Raises:
        TrainingError: there is none, or it is no number.
    """
    found = metrics.get(goal.metric)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        known = ", ".join(name for name, value in metrics.items() if isinstance(value, int | float))
        raise TrainingError(
            f"the objective {goal.metric} has no value", expected=f"a number; there are {known}", got=found
        )
    return float(found)
