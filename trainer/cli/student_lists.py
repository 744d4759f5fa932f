"""Whether a line of `teachonce train` names a file of students, or of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schemas.errors import UsageError

HELP = "Several students: a file of flags and a list `students` of what each has of its own."
FLAG = "--students"
TASKS = "--tasks"
TASKS_HELP = "Several tasks of one student: a file of flags and of tasks (docs/several.md)."


class Named(NamedTuple):
    """A file, and the flag that names it."""

    flag: str
    path: str


def split(argv: Sequence[str]) -> tuple[Named | None, list[str]]:
    """The file of `--students` or `--tasks`, if it is there, and the other flags.

    Raises:
        UsageError: no file follows, there are two, or another file of flags stands beside it.
    """
    found: list[Named] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in (FLAG, TASKS):
            others.append(word)
            continue
        path = value if equals else next(words, "")
        if not path or path.startswith("-"):
            raise UsageError(f"{name} names no file", do="See --help")
        found.append(Named(name, path))
    if len({one.flag for one in found}) > 1:
        raise UsageError(f"{FLAG} does not go with {TASKS}", do="Train several tasks, or several students")
    if len(found) > 1:
        raise UsageError(f"{found[0].flag} stands there twice", got=" ".join(one.path for one in found))
    if found and others and not others[0].startswith("-"):
        raise UsageError(
            f"a file of flags has no place beside {found[0].flag}",
            got=others[0],
            do="Move what it says of all to the top of the other file",
        )
    return (found[0] if found else None), others
