"""What a study found: its trials from the best on, what each parameter weighs, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from trainer.sweep.domains import Value
from trainer.sweep.study import Study, TrialOutcome
from trainer.sweep.watching import WHOLE
from trainer.tasks.student_task import Goal

_LEAST_TRIALS = 4
"""Complete ones: of fewer no forest says anything."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial."""

    number: int
    outcome: TrialOutcome
    drawn: Mapping[str, Value]
    """Its parameters."""
    flags: Mapping[str, Any]
    """What `train` was told."""
    measured: Mapping[str, float]
    """The objective on its way, by the share of its steps."""
    folder: str | None
    """Where its student stands, if it was kept."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        named = {name: value for name, value in vars(self).items() if name != "outcome"}
        return {**named, **asdict(self.outcome)}


@dataclass(frozen=True, kw_only=True)
class Swept:
    """All that a study found."""

    study: str
    cache: str
    cache_version: int
    goal: Goal
    trials: tuple[TrialResult, ...]
    """By their numbers."""
    importance: Mapping[str, float]
    """Of each parameter: its share of the objective's variance; empty where too few trials differ."""

    @property
    def ranking(self) -> list[TrialResult]:
        """Those that came to their end, from the best on; of equal ones the earlier first."""
        sign = -1 if self.goal.is_maximised else 1
        done = [trial for trial in self.trials if trial.outcome.state == "complete"]
        return sorted(done, key=lambda trial: (sign * _value(trial), trial.number))

    @property
    def best(self) -> TrialResult | None:
        """The first of them; of trials with the same flags that which was trained."""
        return next(iter(self.ranking), None)

    @property
    def front(self) -> list[TrialResult]:
        """Students than which none is both as good and smaller, or better and as small; from the best on."""
        return front(self.ranking)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        best = self.best
        return {
            "study": self.study,
            "cache": self.cache,
            "cache_version": self.cache_version,
            "objective": self.goal.metric,
            "direction": self.goal.direction,
            "best": None if best is None else best.number,
            "front": [trial.number for trial in self.front],
            "importance": dict(self.importance),
            "trials": [trial.to_json() for trial in self.trials],
        }


def front(ranking: Sequence[TrialResult]) -> list[TrialResult]:
    """Of trials from the best on, those that are smaller than all before them."""
    found: list[TrialResult] = []
    for trial in ranking:
        if not found or _size(trial) < _size(found[-1]):
            found.append(trial)
    return found


def result_of(study: Study, trial: FrozenTrial) -> TrialResult | None:
    """One trial as it stands; None while it has no outcome."""
    outcome = study.outcome(trial.number)
    if outcome is None:
        return None
    folder = study.place(trial.number if outcome.same_as is None else outcome.same_as)
    return TrialResult(
        number=trial.number,
        outcome=outcome,
        drawn=dict(trial.params),
        flags=study.flags(trial.number),
        measured={f"{part / WHOLE:g}": value for part, value in sorted(trial.intermediate_values.items())},
        folder=str(folder) if folder.is_dir() else None,
    )


def importance(study: Study, seed: int) -> dict[str, float]:
    """Each parameter's share of the objective's variance over the trials that came to their end, by fANOVA (Hutter et
    al., ICML 2014); empty where they are too few, or all alike."""
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    if len(done) < _LEAST_TRIALS or len({trial.value for trial in done}) < 2:
        return {}
    try:
        found = optuna.importance.get_param_importances(
            study.optuna_study, evaluator=FanovaImportanceEvaluator(seed=seed)
        )
    except RuntimeError:  # every tree of the forest is a single leaf
        return {}
    return {name: float(value) for name, value in found.items()}


def _value(trial: TrialResult) -> float:
    assert trial.outcome.value is not None
    return trial.outcome.value


def _size(trial: TrialResult) -> int:
    assert trial.outcome.parameters is not None
    return trial.outcome.parameters
