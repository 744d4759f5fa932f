"""`teachonce train --students FILE`: a file's students as values, and what became of them as lines and a status."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from schemas.cli.logs import log_on_stderr
from schemas.cli.process import reason_of, status_of
from schemas.cli.terminal import print_json
from schemas.errors import UsageError
from schemas.printable import printable
from trainer.checkpoints.signals import Stopped
from trainer.cli.flag_files import read_file
from trainer.cli.parsing import Parser
from trainer.cli.student_lists import FLAG
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.fanout import THREAD, Outcome, train_students

_KEY = "students"


def read_students(
    path: str, flags: Sequence[str], parser: Callable[[], Parser]
) -> list[tuple[TrainConfig, StudentArguments]]:
    """The students of a file: its keys, overruled by the student's own, overruled by the flags.

    Raises:
        UsageError: the file has no such list, or a student's flags cannot be.
    """
    common = read_file(path)
    told = common.pop(_KEY, None)
    if not isinstance(told, list) or not told or not all(isinstance(own, dict) for own in told):
        raise UsageError(
            f"the file of {FLAG} has no list of students",
            where=path,
            expected=f"{_KEY}: [{{student: ..., output_dir: ...}}, ...]",
        )
    return [
        values_of(f"{path}, student {number}", {**common, **own}, flags, parser())
        for number, own in enumerate(told, 1)
    ]


def values_of(
    where: str, told: dict[str, Any], flags: Sequence[str], parser: Parser
) -> tuple[TrainConfig, StudentArguments]:
    """What one part of a file and the flags that overrule it say together.

    Raises:
        UsageError: naming the part.
    """
    try:
        parser.use(told, where)
        config, arguments = parser.values(flags)
    except UsageError as error:
        if error.where == where:
            raise
        raise UsageError(
            f"{where}: {error.what}", where=error.where, expected=error.expected, got=error.got, do=error.do
        ) from error
    return config, arguments


@contextlib.contextmanager
def stdout_left_to(*, as_json: bool) -> Iterator[None]:
    """While students train, what is logged goes to stderr, where stdout is one JSON object's."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def train_file(
    path: str, flags: Sequence[str], parser: Callable[[], Parser], *, as_json: bool = False
) -> int:
    """Trains a file's students: returns the exit status.

    Raises:
        UsageError: they cannot be trained together.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise UsageError(
            f"{FLAG} trains in one process, and not in several ranks",
            got=f"{os.environ['WORLD_SIZE']} ranks",
            do="Run it without torchrun, or train each student by itself",
        )
    students = read_students(path, flags, parser)
    try:
        with (
            log_on_stderr("trainer", logging.INFO, _Named()),
            log_on_stderr("schemas", logging.WARNING),
            stdout_left_to(as_json=as_json),
        ):
            outcomes = train_students(students)
    except Stopped as stopped:
        sys.stderr.write(f"teachonce train: {stopped}\n")
        if as_json:
            print_json({"outcome": "ended", "status": stopped.status, "reason": str(stopped)})
        return stopped.status
    for outcome in outcomes:
        sys.stderr.write(f"{printable(outcome.output_dir)}: {printable(_line(outcome))}\n")
    if as_json:
        print_json({"students": list(map(_told, outcomes))})
    return _status(outcomes)


def _told(outcome: Outcome) -> dict[str, Any]:
    """One student as JSON; of one that failed the reason, and nothing of what was trained."""
    if outcome.trained is None:
        return {"output_dir": outcome.output_dir, "reason": reason_of(outcome.error or RuntimeError())}
    return {**outcome.trained._asdict(), "reason": None}


def _line(outcome: Outcome) -> str:
    if outcome.trained is None:
        return f"failed: {reason_of(outcome.error or RuntimeError())}"
    told = "already finished, nothing to do: " if outcome.trained.was_finished else ""
    return f"{told}{outcome.trained.steps} steps; the student is in {outcome.trained.output_dir}"


def _status(outcomes: Sequence[Outcome]) -> int:
    """0, if every student is trained; 1, if one failed in training; else that of what kept it from starting."""
    failed = [outcome for outcome in outcomes if outcome.trained is None]
    if not failed:
        return 0
    sys.stderr.write(f"teachonce train: {len(failed)} of {len(outcomes)} students failed\n")
    return min(status_of(outcome.error or RuntimeError()) for outcome in failed)


class _Named(logging.Formatter):
    """A message behind the name of the student whose thread says it."""

    def format(self, record: logging.LogRecord) -> str:
        text, thread = super().format(record), record.threadName or ""
        name = f"{thread.removeprefix(THREAD)}: " if thread.startswith(THREAD) else ""
        return text if text.startswith(name) else f"{name}{text}"
