"""Flags of the tasks' own settings, as `schemas/tasks.py` has them: a task that is added brings its flags along."""

from __future__ import annotations

import argparse
from typing import Any

from schemas.cli.arguments import Flags, positive
from schemas.errors import UsageError
from schemas.generation import Generation, parse_generation
from schemas.task import SettingValue
from schemas.tasks import TASKS

_BY_NAME = {setting.name: setting for task in TASKS.values() for setting in task.settings}


def add_task_flags(group: Flags) -> None:
    """One flag for each setting of any task; what is not given is None."""
    for name, setting in _BY_NAME.items():
        tasks = ", ".join(task.name for task in TASKS.values() if setting in task.settings)
        told = f"{tasks}: {setting.help}"
        if setting.by_teacher:
            told += " (default: what the teacher's folder says)"
        if isinstance(setting.default, bool):
            switch: Any = argparse.BooleanOptionalAction if setting.by_teacher else "store_true"
            group.add_argument(f"--{name}", action=switch, default=None, help=told)
        elif isinstance(setting.default, str):
            group.add_argument(f"--{name}", metavar="TEXT", help=told)
        else:
            kind, metavar = type(setting.default), "N" if isinstance(setting.default, int) else "P"
            told = f"{told} ({setting.default:g})"
            group.add_argument(f"--{name}", type=kind, metavar=metavar, help=told)


_NEW_TOKENS = 256


def add_generation_flags(group: Flags) -> None:
    """Whether the teacher writes the texts, and how."""
    write = (
        "let the teacher answer each prompt, or the last message: greedy, beams:B or sample[:temperature=T,"
    )
    group.add_argument("--generate", metavar="HOW", help=write + "top_p=P,top_k=K] (by --sample_seed)")
    new = f"tokens of an answer at most, with --generate ({_NEW_TOKENS})"
    group.add_argument("--max_new_tokens", type=positive, metavar="N", help=new)


def generation_of(arguments: argparse.Namespace) -> Generation | None:
    """How the teacher writes; None where the corpus has the answers.

    Raises:
        UsageError: a number for nothing.
        ValueError: there is no such way.
    """
    if arguments.generate is not None:
        return parse_generation(arguments.generate, arguments.max_new_tokens or _NEW_TOKENS)
    if arguments.max_new_tokens is not None:
        raise UsageError("--max_new_tokens has no effect without --generate", do="Leave it out")
    return None


def task_settings(arguments: argparse.Namespace) -> dict[str, SettingValue]:
    """Those that were given.

    Raises:
        UsageError: the task has no such setting.
    """
    own = [setting.name for setting in TASKS[arguments.task].settings]
    given = {name: value for name in _BY_NAME if (value := getattr(arguments, name)) is not None}
    for name in (name for name in given if name not in own):
        raise UsageError(
            f"--{name} has no meaning for {arguments.task}", do="Leave it out, or say another --task"
        )
    return given
