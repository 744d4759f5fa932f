"""`sweep`: trials drawn, trained, measured and told, until a study has as many as were asked for.

The best student and those of the front stay, each in its folder as `train` leaves it, without checkpoints; beside them
stand what `train` was told of each, `best.yaml` of the best, and `best`, a link to its folder. Others are removed when
they are beaten.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml  # type: ignore[import-untyped]

from schemas.cache import Cache
from schemas.errors import UsageError
from trainer.checkpoints.whole_folders import checkpoints
from trainer.evaluation.held_out import HeldOut
from trainer.students.students import open_student
from trainer.sweep.choices import DEFAULT_TRIALS
from trainer.sweep.config import SweepConfig
from trainer.sweep.draws import draw, grid_size
from trainer.sweep.results import Swept, importance, result_of
from trainer.sweep.space import Build
from trainer.sweep.study import Study, check_same, open_study
from trainer.sweep.trials import Trials
from trainer.sweep.watching import BATCH_SIZE, measurer
from trainer.tasks.student_task import Goal
from trainer.tasks.tasks import STUDENT_TASKS
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep would do."""

    goal: Goal
    trials: int
    """In all."""
    cache: Cache


def plan(config: SweepConfig, build: Build) -> Plan:
    """Checks the space and the cache; nothing is written.

    Raises:
        UsageError: the space, or what is asked for, cannot be.
        StudentError: the student by which the objective is looked for does not fit the cache.
        CacheError: the cache cannot be read.
    """
    told, arguments = config.space.built(config.space.check(build), build)
    if told.eval_fraction == 0:
        raise UsageError("a sweep compares students on held-out documents", got="eval_fraction 0")
    cache = Cache.open(config.cache, told.cache_version)
    goal = _goal(config, cache, told, arguments)
    combinations = grid_size(config.space) if config.sampler == "grid" else None
    usual = DEFAULT_TRIALS if combinations is None else combinations
    return Plan(
        goal=goal, trials=min(config.trials or usual, combinations or config.trials or usual), cache=cache
    )


def _goal(config: SweepConfig, cache: Cache, told: TrainConfig, arguments: StudentArguments) -> Goal:
    """What trials are compared by. Of a metric that is asked for it is seen whether the task gives it."""
    held_out = HeldOut(cache=cache, eval_fraction=told.eval_fraction, batch_size=BATCH_SIZE)
    reads = cache.spec.kind.reads_labels
    labelled = reads and any(bool(rows.ragged("labels").validity.any()) for rows in held_out.rows())
    usual = STUDENT_TASKS[cache.spec.task].goal(cache.spec, labelled)
    goal = config.goal(usual)
    if goal != usual:
        student = open_student(told.student, cache, teacher=told.teacher, seed=arguments.seed)
        student.model.to(arguments.device)
        known = {
            n: v for n, v in measurer(cache, told, arguments)(student).items() if not isinstance(v, list)
        }
        if goal.metric not in known:
            raise UsageError("--objective names no metric", expected=", ".join(known), got=goal.metric)
    return goal


def sweep(config: SweepConfig, build: Build) -> Swept:
    """Begins a study, or goes on with it; `build` makes `train`'s values of flags.

    Raises:
        UsageError: the space, the study or what is asked for cannot be.
        CacheError: the cache cannot be read.
        TrainingError: no trial came to its end.
        Stopped: SIGTERM or SIGINT came; what was trained is saved. (A `KeyboardInterrupt`.)
    """
    planned = plan(config, build)
    with open_study(config.study, config.cache, goal=planned.goal, pruner=_pruner(config)) as study:
        cache = _begun(study, config, planned)
        trials = Trials(study=study, cache=cache, goal=planned.goal, config=config, build=build)
        while batch := _next(study, config, planned, cache):
            trials.run(batch)
            study.tell()
            tidy(study, swept(study, config, planned.goal, cache), keeps_all=config.keep == "all")
        tidy(study, swept(study, config, planned.goal, cache), keeps_all=config.keep == "all")
        return swept(study, config, planned.goal, cache)


def _pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    return optuna.pruners.NopPruner() if config.pruner == "none" else optuna.pruners.MedianPruner()


def _begun(study: Study, config: SweepConfig, planned: Plan) -> Cache:
    """The cache at the version that all of the study's trials have.

    Raises:
        UsageError: the study was begun with something else.
    """
    header = planned.cache.header.to_json()["hash"]
    now = {**config.identity(planned.goal), "cache": header}
    before = study.settings
    if not before:
        study.begin({**json.loads(json.dumps(now, default=str)), "cache_version": planned.cache.version})
        return planned.cache
    check_same(before, now, study.folder)
    return Cache.open(config.cache, int(before["cache_version"]))


def _next(study: Study, config: SweepConfig, planned: Plan, cache: Cache) -> list[int]:
    """The trials to run now: those that are open, drawn to the end of their round; or a new round."""
    number, begun = len(study.trials), bool(study.open_trials)
    rounds = math.ceil(number / config.parallel) if begun else number // config.parallel + 1
    for own in range(number, min(planned.trials, rounds * config.parallel)):
        values = draw(
            config.space,
            study.trials,
            sampler=config.sampler,
            seed=config.seed,
            number=own,
            goal=planned.goal,
        )
        pinned = {"cache": config.cache, "cache_version": cache.version}
        study.add(config.space, values, {**config.space.flags(values), **pinned})
    return study.open_trials


def swept(study: Study, config: SweepConfig, goal: Goal, cache: Cache) -> Swept:
    """What the study found so far."""
    results = [result_of(study, trial) for trial in study.trials]
    return Swept(
        study=str(study.folder),
        cache=config.cache,
        cache_version=cache.version,
        goal=goal,
        trials=tuple(result for result in results if result is not None),
        importance=importance(study, config.seed),
    )


def tidy(study: Study, found: Swept, *, keeps_all: bool) -> None:
    """Leaves the students of the front, or all, as `train` does; what it was told of each; and a link to the best."""
    kept = {trial.number for trial in (found.trials if keeps_all else found.front)}
    for trial in found.trials:
        folder = study.place(trial.number)
        file = folder.with_suffix(".yaml")
        if not file.exists():
            _write(file, trial.flags)
        if folder.is_dir() and trial.number not in kept:
            shutil.rmtree(folder)
        elif trial.outcome.state == "complete":
            for checkpoint in checkpoints(folder):
                shutil.rmtree(checkpoint)
    if found.best is not None:
        _write(study.folder / "best.yaml", found.best.flags)
        _link(study.folder / "best", study.place(found.best.number).name)


def _write(file: Path, flags: Mapping[str, Any]) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_text(yaml.safe_dump(dict(flags), sort_keys=False, allow_unicode=True), encoding="utf-8")
    part.replace(file)


def _link(link: Path, target: str) -> None:
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link)
