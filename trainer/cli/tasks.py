"""`teachonce train --tasks FILE`: a file's tasks as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schemas.errors import UsageError, nearest
from trainer.cli.flag_files import read_file
from trainer.cli.parsing import Parser
from trainer.cli.student_lists import TASKS
from trainer.cli.students import values_of
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.tasks_config import OWN, TasksConfig

_KEY, _SHARE = "tasks", "share"
_SAMPLING, _UNCERTAINTY = "sampling", "uncertainty"


def read_tasks(
    path: str, flags: Sequence[str], parser: Callable[[], Parser]
) -> tuple[TasksConfig, StudentArguments]:
    """The tasks of a file: its keys, overruled by the task's own, overruled by the flags.

    Raises:
        UsageError: the file has no such mapping, or a task's flags cannot be.
    """
    common = read_file(path)
    tasks = common.pop(_KEY, None)
    if not isinstance(tasks, dict) or not tasks or not all(isinstance(own, dict) for own in tasks.values()):
        expected = f"{_KEY}: {{NAME: {{cache: ..., losses: ...}}, ...}}"
        raise UsageError(f"the file of {TASKS} has no mapping of tasks", where=path, expected=expected)
    for flag in flags:
        if flag.partition("=")[0].removeprefix("--").replace("-", "_") == "cache":
            raise UsageError(
                f"--cache is each task's own, in the file of {TASKS}", got=flag, do="Leave it out"
            )
    sampling = _number(path, _SAMPLING, common.pop(_SAMPLING, 1.0))
    uncertainty = common.pop(_UNCERTAINTY, False)
    if not isinstance(uncertainty, bool):
        raise UsageError(f"{_UNCERTAINTY} is true or false", where=path, got=uncertainty)
    shares = {
        str(name): _number(f"{path}, task {name}", _SHARE, own[_SHARE])
        for name, own in tasks.items()
        if _SHARE in own
    }
    read = {
        str(name): _task(f"{path}, task {name}", common, own, flags, parser()) for name, own in tasks.items()
    }
    config = TasksConfig(
        tasks={name: one for name, (one, _) in read.items()},
        shares=shares or None,
        sampling=sampling,
        uncertainty=uncertainty,
    )
    (_, arguments), *_ = read.values()
    return config, arguments


def _task(
    where: str, common: Mapping[str, Any], own: Mapping[str, Any], flags: Sequence[str], parser: Parser
) -> tuple[TrainConfig, StudentArguments]:
    for key in own:
        if key not in (*OWN, _SHARE):
            raise UsageError(
                "a task has no such key of its own",
                where=where,
                expected=", ".join((*OWN, _SHARE)),
                got=key,
                do=f"{nearest(str(key), OWN)}Say of all tasks what is the student's or the loop's",
            )
    told = {**common, **{key: value for key, value in own.items() if key != _SHARE}}
    return values_of(where, told, flags, parser)


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{key} is a number", where=where, got=value)
    return float(value)
