"""`Study`: a sweep's trials on the disk, in an SQLite database that Optuna writes and `optuna-dashboard` opens.

* A trial stands there whole, with all its parameters, before any of it runs; what became of it is written as soon as it
  is known. So whatever is killed, no trial is lost, and none that came to its end is run again.
* Optuna hears of the results when all trials that were drawn together have theirs, in the order of their numbers. So
  what is drawn, and which trials are given up, does not depend on which of them was faster.
* The folder is one process's alone while it is open (a lock of the kernel's, which kill -9 releases).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from schemas.errors import UsageError, one_line
from trainer.checkpoints.output_folder import LOCK_NAME, check_place, locked
from trainer.sweep.space import Space, Values
from trainer.tasks.student_task import Goal

DATABASE = "study.db"
_NAME, _SETTINGS, _FLAGS, _OUTCOME = "teachonce", "settings", "flags", "outcome"
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What became of one trial."""

    state: str
    """complete, pruned or failed."""
    value: float | None = None
    """Of the objective; of a pruned trial the last that was measured."""
    reason: str | None = None
    """Why it failed, or after how much it was given up."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    """The student's size."""
    steps: int | None = None
    same_as: int | None = None
    """The trial of the same flags, whose outcome this is."""

    def __post_init__(self) -> None:
        if self.state not in _STATES or (self.state == "complete") != bool(self.metrics):
            raise ValueError(f"no trial ends like this: {self.state}, metrics {dict(self.metrics)}")


class Study:
    """An open study. From any thread of this process."""

    def __init__(self, folder: Path, study: optuna.Study) -> None:
        self.folder, self._study = folder, study

    @property
    def settings(self) -> dict[str, Any]:
        """What it was begun with; empty of one that begins now."""
        found: dict[str, Any] = self._study.user_attrs.get(_SETTINGS, {})
        return found

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Writes down what it is begun with."""
        self._study.set_user_attr(_SETTINGS, dict(settings))

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by their numbers, as Optuna has them."""
        return self._study.get_trials(deepcopy=False)

    @property
    def optuna_study(self) -> optuna.Study:
        """For what reads studies."""
        return self._study

    @property
    def open_trials(self) -> list[int]:
        """Those of which Optuna has not heard the result."""
        return [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]

    def add(self, space: Space, values: Values, flags: Mapping[str, Any]) -> None:
        """A trial that is to be run, at once whole."""
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(values),
                distributions={p.name: p.domain.distribution for p in space.parameters},
                user_attrs={_FLAGS: dict(flags)},
            )
        )

    def flags(self, number: int) -> dict[str, Any]:
        """What `train` is told of a trial, but for its folder."""
        return dict(self.trials[number].user_attrs[_FLAGS])

    def outcome(self, number: int) -> TrialOutcome | None:
        """What became of a trial, as soon as it is known."""
        told = self.trials[number].user_attrs.get(_OUTCOME)
        return None if told is None else TrialOutcome(**told)

    def note(self, number: int, outcome: TrialOutcome) -> None:
        """Writes down what became of a trial."""
        self.live(number).set_user_attr(_OUTCOME, asdict(outcome))

    def live(self, number: int) -> optuna.trial.Trial:
        """For what is measured of a trial on its way."""
        return optuna.trial.Trial(self._study, self.trials[number]._trial_id)

    def tell(self) -> None:
        """Lets Optuna hear of the trials that were drawn together, once each of them has its outcome."""
        for number in self.open_trials:
            outcome = self.outcome(number)
            assert outcome is not None
            value = outcome.value if outcome.state == "complete" else None
            self._study.tell(number, value, state=_STATES[outcome.state])

    def place(self, number: int) -> Path:
        """A trial's folder."""
        return self.folder / f"trial-{number:04d}"


@contextmanager
def open_study(folder: str, cache: str, *, goal: Goal, pruner: optuna.pruners.BasePruner) -> Iterator[Study]:
    """The study of a folder, made if it is not there; this process's alone while it lasts.

    Raises:
        UsageError: the folder holds something else, is another sweep's now, or its database cannot be read.
    """
    path = check_place(folder, [cache], (), "--study")
    with locked(path, "--study"):
        others = [file.name for file in path.iterdir() if file.name != LOCK_NAME]
        if others and DATABASE not in others:
            raise UsageError("--study holds something else", where=path / others[0], do="Name another folder")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{path / DATABASE}",
                study_name=_NAME,
                direction=goal.direction,
                sampler=optuna.samplers.RandomSampler(),
                pruner=pruner,
                load_if_exists=True,
            )
        except Exception as error:
            got = one_line(error)
            raise UsageError("the study cannot be opened", where=path / DATABASE, got=got) from error
        yield Study(path, study)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Whether a study is gone on with as it was begun.

    Raises:
        UsageError: naming the first difference.
    """
    plain = json.loads(json.dumps(dict(now), default=str))
    for name, value in plain.items():
        if before.get(name) != value:
            raise UsageError(
                f"the study was begun with another {name}",
                where=where,
                expected=before.get(name),
                got=value,
                do="Say what it was begun with, or name another --study",
            )
