"""Trials that were drawn together: trained from one decode where they can be, and each brought to its outcome.

What is a trial's own fault (flags that do not go together, a loss that is not finite, memory that does not suffice) is
its outcome. What is not (a damaged cache, a store or disk that fails) ends the sweep: the trial is open still, and the
next run goes on.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from safetensors import SafetensorError

from schemas.cache import Cache
from schemas.errors import CacheError, StudentError, TeachonceError, UsageError, one_line
from trainer.sweep.config import SweepConfig
from trainer.sweep.space import Build
from trainer.sweep.study import Study, TrialOutcome
from trainer.sweep.watching import Watch, evaluated, measurer, outcome_of
from trainer.tasks.student_task import Goal
from trainer.training.arguments import StudentArguments
from trainer.training.company import Pruned
from trainer.training.config import TrainConfig
from trainer.training.fanout import Outcome, check_together, shared_settings, train_students

_log = logging.getLogger(__name__)


class _Trial(NamedTuple):
    number: int
    config: TrainConfig
    arguments: StudentArguments


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Runs a study's trials."""

    study: Study
    cache: Cache
    goal: Goal
    config: SweepConfig
    build: Build

    def run(self, numbers: Sequence[int]) -> None:
        """Brings trials to their outcomes; those that have one are left alone.

        Raises:
            CacheError, OSError: what is no trial's fault.
            Stopped: SIGTERM or SIGINT came; what was trained is saved.
        """
        own, repeated = self._unlike(n for n in numbers if self.study.outcome(n) is None)
        built = [trial for number in own if (trial := self._built(number)) is not None]
        for group in _groups(built):
            self._train(group)
        for number, first in repeated.items():
            outcome = self.study.outcome(first)
            assert outcome is not None
            self._note(number, replace(outcome, same_as=first))

    def _unlike(self, numbers: Iterable[int]) -> tuple[list[int], dict[int, int]]:
        """Those whose flags none before has, and of the others which trial has them."""
        first: dict[str, int] = {}
        for trial in self.study.trials:
            first.setdefault(_key(self.study.flags(trial.number)), trial.number)
        found = {number: first[_key(self.study.flags(number))] for number in numbers}
        return [n for n, same in found.items() if n == same], {n: s for n, s in found.items() if n != s}

    def _built(self, number: int) -> _Trial | None:
        folder = str(self.study.place(number))
        flags = self.study.flags(number) | {"output_dir": folder, "resume_from_checkpoint": "auto"}
        try:
            config, arguments = self.build(flags, f"trial {number}")
            check_together([(config, arguments)])
        except UsageError as error:
            self._fail(number, error)
            return None
        return _Trial(number, config, arguments)

    def _train(self, group: Sequence[_Trial]) -> None:
        told = ", ".join(str(trial.number) for trial in group)
        _log.info("trial%s %s: training", "s" if len(group) > 1 else "", told)
        outcomes = train_students([(t.config, t.arguments) for t in group], [self._watch(t) for t in group])
        foreign: list[BaseException] = []
        for trial, outcome in zip(group, outcomes, strict=True):
            try:
                self._note(trial.number, self._found(trial, outcome))
            except Exception as error:  # noqa: BLE001  (it is told, and the sweep goes on)
                if is_foreign(error):
                    foreign.append(error)
                else:
                    self._fail(trial.number, error)
        if foreign:
            raise foreign[0]

    def _found(self, trial: _Trial, outcome: Outcome) -> TrialOutcome:
        """What became of one: measured, or given up.

        Raises:
            BaseException: why it failed.
        """
        if isinstance(outcome.error, Pruned):
            known = self.study.trials[trial.number].intermediate_values
            return TrialOutcome(state="pruned", value=known[max(known)], reason=str(outcome.error))
        if outcome.error is not None:
            raise outcome.error
        assert outcome.trained is not None
        return outcome_of(evaluated(trial.config, trial.arguments), self.goal, outcome.trained.steps)

    def _watch(self, trial: _Trial) -> Watch:
        return Watch(
            number=trial.number,
            trial=self.study.live(trial.number),
            goal=self.goal,
            shares=() if self.config.pruner == "none" else self.config.prune_at,
            known=self.study.trials[trial.number].intermediate_values,
            measure=measurer(self.cache, trial.config, trial.arguments),
        )

    def _fail(self, number: int, error: BaseException) -> None:
        told = (
            str(error) if isinstance(error, TeachonceError) else f"{type(error).__name__}: {one_line(error)}"
        )
        self._note(number, TrialOutcome(state="failed", reason=told))

    def _note(self, number: int, outcome: TrialOutcome) -> None:
        self.study.note(number, outcome)
        if outcome.state == "complete":
            _log.info("trial %d: %s %.4g", number, self.goal.metric, outcome.value)
        else:
            _log.info("trial %d: %s: %s", number, outcome.state, outcome.reason)


_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


def is_foreign(error: BaseException) -> bool:
    """Whether an error is no trial's fault: the cache's, or the system's. What cannot be opened of a student is its
    own, whatever lies beneath, unless that is a disk."""
    links = [error]
    while (cause := links[-1].__cause__) is not None:
        links.append(cause)
    if any(isinstance(link, CacheError) or getattr(link, "errno", None) in _OF_THE_DISK for link in links):
        return True
    if any(isinstance(link, UsageError | StudentError) for link in links):
        return False
    return any(
        isinstance(link, OSError | SafetensorError) for link in links
    )  # the last: what cannot be written


def _groups(trials: Sequence[_Trial]) -> list[list[_Trial]]:
    """Those that one decode can serve, together."""
    found: dict[str, list[_Trial]] = {}
    for trial in trials:
        found.setdefault(_key(shared_settings(trial.config, trial.arguments)), []).append(trial)
    return list(found.values())


def _key(told: Mapping[str, Any]) -> str:
    return json.dumps(told, sort_keys=True, default=str)
