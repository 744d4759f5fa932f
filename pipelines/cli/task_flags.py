"""Flags of the tasks' own settings, as `schemas/tasks.py` has them: a task that is added brings its flags along."""

from __future__ import annotations

import argparse

from schemas.tasks import TASKS, SettingValue

_BY_NAME = {setting.name: setting for task in TASKS.values() for setting in task.settings}


def add_task_flags(group: argparse._ActionsContainer) -> None:
    """One flag for each setting of any task; what is not given is None."""
    for name, setting in _BY_NAME.items():
        tasks = ", ".join(task.name for task in TASKS.values() if setting in task.settings)
        told = f"{tasks}: {setting.help}"
        if isinstance(setting.default, bool):
            group.add_argument(f"--{name}", action="store_true", default=None, help=told)
        else:
            kind, metavar = type(setting.default), "N" if isinstance(setting.default, int) else "P"
            told = f"{told} ({setting.default:g})"
            group.add_argument(f"--{name}", type=kind, metavar=metavar, help=told)


def task_settings(arguments: argparse.Namespace) -> dict[str, SettingValue]:
    """Those that were given."""
    given = {name: getattr(arguments, name) for name in _BY_NAME}
    return {name: value for name, value in given.items() if value is not None}
