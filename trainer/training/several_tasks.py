"""`train_tasks`: one student for several tasks, each taught by a cache of its own, from one backbone.

What is opened, checked and told of a task is what `train` would of it alone; there is one loop, and a step is a task's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from schemas.errors import UsageError
from trainer.checkpoints.output_folder import check_place, check_space
from trainer.checkpoints.records import Record
from trainer.checkpoints.resuming import Beginning, check_finished
from trainer.checkpoints.signals import Signals, watched
from trainer.stream.replay import Replay
from trainer.students.shared_backbone import share_backbone
from trainer.students.student import Student
from trainer.training.arguments import StudentArguments, check_arguments, settle_direction
from trainer.training.bank import read_bank
from trainer.training.config import TrainConfig
from trainer.training.preflight import check_loop, check_total, told_errors, total_steps
from trainer.training.run_identity import make_record, new_run
from trainer.training.streams import Opened, make_replays, needed_features, open_caches, stream_seed
from trainer.training.tasks_card import save_task_cards
from trainer.training.tasks_config import TasksConfig, check_loop_flags, metrics_of
from trainer.training.tasks_distiller import TasksDistiller
from trainer.training.tasks_loop import TasksTrainer
from trainer.training.tasks_order import TasksOrder, order_of_tasks
from trainer.training.tasks_stream import TasksReplay
from trainer.training.training import (
    Trained,
    begin,
    check_student,
    make_distiller,
    notices,
    open_one,
)

_log = logging.getLogger(__name__)


class _Task(NamedTuple):
    """One of them, with what it reads and what it trains."""

    config: TrainConfig
    opened: Opened
    student: Student
    training: Replay
    evaluation: Replay | None
    record: Record


def train_tasks(config: TasksConfig, arguments: StudentArguments) -> Trained:
    """Distils a student of several tasks into `arguments.output_dir`: a folder a task, which its Auto class opens.

    Raises:
        UsageError: a path, model, flag or checkpoint that cannot be used.
        StudentError: a student or its losses do not fit a cache, or the tasks have no backbone in common.
        CacheError: a cache cannot be read.
        TrainingError: a step was not finite, or what was trained cannot be saved.
        Stopped: SIGTERM or SIGINT came; what was trained is saved. (A `KeyboardInterrupt`.)
    """
    check_arguments(arguments)
    check_loop_flags(arguments)
    settle_direction(arguments, list(metrics_of(config.tasks)))
    with ExitStack() as stack:
        signals = stack.enter_context(watched())
        for one in config.tasks.values():
            check_place(str(arguments.output_dir), one.sources, one.beginnings)
        beginning = begin(config.first, arguments, stack)
        opened = _open(config, arguments, beginning.record)
        return _distil(config, arguments, beginning, opened, signals)


def _open(config: TasksConfig, arguments: StudentArguments, before: Record | None) -> dict[str, Opened]:
    """Each task's caches, at the versions that the checkpoint's run had."""
    found, first, from_scratch = {}, 0, config.first.student.endswith(".json")
    for name, one in config.tasks.items():
        last = first + len(one.sources)
        part = None if before is None else replace(before, caches=before.caches[first:last])
        found[name], first = open_caches(one, arguments.world_size, part), last
    (task, ours), *others = found.items()
    for name, theirs in others:
        if from_scratch and (differing := _differing(ours, theirs)):
            raise UsageError(
                f"the caches of {task} and {name} have different tokenizers, and the student would have one",
                where=f"{ours.first.storage.root}, {theirs.first.storage.root}",
                expected="caches of teachers with one tokenizer",
                got=", ".join(differing),
                do="Precompute both with teachers of one tokenizer; or name a --student folder with a tokenizer of its "
                "own, and caches with --keep_text",
            )
    return found


def _differing(ours: Opened, theirs: Opened) -> list[str]:
    one, other = ours.first.header.tokenizer, theirs.first.header.tokenizer
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _distil(
    config: TasksConfig,
    arguments: StudentArguments,
    beginning: Beginning,
    opened: Mapping[str, Opened],
    signals: Signals,
) -> Trained:
    run = new_run() if beginning.record is None else beginning.record.run
    tasks = _tasks(config, arguments, opened, run)
    order = order_of_tasks(
        {name: task.training.order for name, task in tasks.items()},
        config.shares,
        config.sampling,
        stream_seed(arguments),
    )
    total, record, folder = (
        total_steps(arguments, order),
        _record(config, tasks),
        Path(str(arguments.output_dir)),
    )
    if beginning.manifest is not None:
        where = str(beginning.checkpoint or folder)
        record.check_resumable(beginning.manifest.record, where, allow_new_data=config.first.allow_new_data)
        finished = beginning.finished
        if finished is not None and finished.step == total and check_finished(folder, finished):
            return Trained(str(folder), total, {}, was_finished=True)
        check_total(beginning.manifest, total, config.first.objective)
    _tell(tasks, order)
    training = TasksReplay({name: task.training for name, task in tasks.items()}, order)
    evaluation = {name: task.evaluation for name, task in tasks.items() if task.evaluation is not None}
    loop = TasksTrainer(
        students={name: task.student for name, task in tasks.items()},
        records={name: task.record for name, task in tasks.items()},
        distiller=_distiller(config, arguments, tasks),
        arguments=arguments,
        training=training,
        evaluation=evaluation or None,
        record=record,
        signals=signals,
    )
    try:
        trained = _run(loop, arguments, beginning, signals, total)
        caches = {name: task.opened.first for name, task in tasks.items()}
        records = {name: task.record for name, task in tasks.items()}
        save_task_cards(config, arguments, caches, records, loop.state.log_history)
        return trained
    finally:
        training.close()


def _tasks(
    config: TasksConfig, arguments: StudentArguments, opened: Mapping[str, Opened], run: str
) -> dict[str, _Task]:
    """Each task with its student; the students share their backbone from here on."""
    students = {}
    for name, one in config.tasks.items():
        one.objective.check(opened[name].first.spec)
        students[name] = open_one(one, arguments, opened[name].first)
        check_student(one, opened[name], students[name])
    shared = share_backbone({name: student.model for name, student in students.items()})
    _log.info("%d tasks share a backbone of %s parameters", len(students), f"{shared:,}")
    found = {}
    for name, one in config.tasks.items():
        training, evaluation = make_replays(one, arguments, opened[name], students[name])
        record = make_record(one, arguments, opened[name], students[name], run)
        found[name] = _Task(one, opened[name], students[name], training, evaluation, record)
    return found


def _record(config: TasksConfig, tasks: Mapping[str, _Task]) -> Record:
    """What decides all weights: each task's own record, and how they share the steps."""
    records = {name: task.record for name, task in tasks.items()}
    losses = {
        f"{name}/{loss}": weight for name, one in records.items() for loss, weight in one.losses.items()
    }
    own = {
        f"task {name}": {"where": one.where, "temperature": one.temperature, "feature_loss": one.feature_loss}
        | dict(one.settings)
        for name, one in records.items()
    }
    return replace(
        next(iter(records.values())),
        caches=[cache for one in records.values() for cache in one.caches],
        losses=losses,
        student_weights=" ".join(one.student_weights for one in records.values()).strip(),
        settings={**config.told(), **own},
        where=[],
        label_names=[],
    )


def _tell(tasks: Mapping[str, _Task], order: TasksOrder) -> None:
    counts = zip(tasks, order.counts, strict=True)
    told = ", ".join(f"{name} {count:,}" for name, count in counts)
    _log.info("an epoch has %s steps: %s", f"{order.num_steps:,}", told)
    for name, task in tasks.items():
        for line in notices(task.config, task.opened, task.student):
            _log.info("%s: %s", name, line)


def _distiller(
    config: TasksConfig, arguments: StudentArguments, tasks: Mapping[str, _Task]
) -> TasksDistiller:
    found = {}
    for name, task in tasks.items():
        cache, objective = task.opened.first, task.config.objective
        number, features = objective.bank, needed_features(cache, objective)
        bank = read_bank(task.training.sides, features, number, stream_seed(arguments)) if number else None
        found[name] = make_distiller(task.student, cache, objective, bank)
    return TasksDistiller(found, uncertainty=config.uncertainty)


def _run(
    loop: TasksTrainer, arguments: StudentArguments, beginning: Beginning, signals: Signals, total: int
) -> Trained:
    folder = Path(str(arguments.output_dir))
    check_loop(loop, total)
    parameters = len(loop.students) * sum(weight.numel() for weight in loop.student.model.parameters())
    check_space(folder, parameters, saves_optimizer=arguments.save_strategy != "no")
    with signals.waiting(), told_errors(compiles=False):
        result = loop.run(beginning.checkpoint, beginning.manifest)
    return Trained(str(folder), result.global_step, result.metrics)
