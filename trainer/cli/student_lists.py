"""Whether a line of `teachonce train` names a file of students."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import UsageError

HELP = "Several students: a file of flags and a list `students` of what each has of its own."
FLAG = "--students"


def split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file of `--students`, if it is there, and the other flags.

    Raises:
        UsageError: no file follows, it stands there twice, or another file of flags stands beside it.
    """
    found: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != FLAG:
            others.append(word)
            continue
        path = value if equals else next(words, "")
        if not path or path.startswith("-"):
            raise UsageError(f"{FLAG} names no file", do="See --help")
        found.append(path)
    if len(found) > 1:
        raise UsageError(f"{FLAG} stands there twice", got=" ".join(found))
    if found and others and not others[0].startswith("-"):
        raise UsageError(
            f"a file of flags has no place beside {FLAG}",
            got=others[0],
            do="Move what it says of all students to the top of the other file",
        )
    return (found[0] if found else None), others
