"""`Parser`: argparse for every verb, with wrong flags as `UsageError`s: one line, exit status 2.

An abbreviated flag is refused, because a later release may add a flag that makes it ambiguous. `--help` keeps the line
breaks of description and epilog, so that examples stand as they were written.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from schemas.errors import UsageError, nearest

_UNIT_SECONDS = {"d": 86_400.0, "h": 3_600.0}
_MOST_DIGITS, _MOST_SHOWN = 15, 40


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` for a verb: takes the same keyword arguments.

    `parser.parse_args(argv)` raises `UsageError` where argparse would print usage and exit.
    """

    def __init__(self, **keywords: Any) -> None:
        keywords.setdefault("allow_abbrev", False)
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**keywords)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.replace("\n", " "), do=f"See `{self.prog} --help`")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; a flag that is none is told with the nearest that is one.

        Raises:
            UsageError: the line cannot be parsed.
        """
        flags = [text for action in self._actions for text in action.option_strings]
        words = list(sys.argv[1:] if args is None else args)
        # before argparse, which tells what is missing first: what is missing may be what is misspelt
        wrong = _unknown(words, flags)
        found, unknown = (None, wrong) if wrong else self.parse_known_args(words, namespace)
        if unknown:
            do = f"{nearest(unknown[0].partition('=')[0], flags)}See `{self.prog} --help`"
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", do=do)
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's, with the nearest choice."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            told = f"invalid choice: {_cut(str(value))} ({nearest(str(value), choices)}choose from "
            raise argparse.ArgumentError(action, f"{told}{', '.join(choices)})")


def _unknown(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Long flags that are none, each with what stands behind it."""
    found: list[str] = []
    follows = False
    for word in words:
        if word.startswith("--"):
            follows = word.partition("=")[0] not in flags
        if follows:
            found.append(word)
    return found


class Groups:
    """Titled groups of flags in a help text, behind one with the few flags that matter first.

    `groups["corpus"].add_argument(...)` puts a flag under its title, or, where it is one of `first`, under that.
    """

    def __init__(self, parser: argparse.ArgumentParser, first: Iterable[str]) -> None:
        self._parser, self._first = parser, frozenset(first)
        self._lead = parser.add_argument_group("what matters first")

    def __getitem__(self, title: str) -> Flags:
        group = self._parser.add_argument_group(title)
        return _Divided(self._lead, group, self._first)


@runtime_checkable
class Flags(Protocol):
    """What flags are added to."""

    def add_argument(self, *names: str, **keywords: Any) -> Any:
        """As argparse's."""


class _Divided(NamedTuple):
    lead: argparse._ArgumentGroup
    group: argparse._ArgumentGroup
    first: frozenset[str]

    def add_argument(self, *names: str, **keywords: Any) -> argparse.Action:
        return (self.lead if self.first & set(names) else self.group).add_argument(*names, **keywords)


class Repeatable(argparse.Action):
    """The `action` of a flag that takes values and may stand several times: `--x a b` is `--x a --x b`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest) if getattr(self, "_told", None) is namespace else []
        self._told = namespace
        setattr(namespace, self.dest, [*before, *values])


def natural(text: str) -> int:
    """An integer from 0, as the `type` of a flag."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {_cut(text)}")
    return _whole(text)


def _whole(text: str) -> int:
    """Digits as a number that every library takes."""
    if len(text.lstrip("0")) > _MOST_DIGITS:
        most = f"expected a number of at most {_MOST_DIGITS} digits"
        raise argparse.ArgumentTypeError(f"{most}, got {_cut(text)}")
    return int(text[-_MOST_DIGITS:])


def _cut(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


def not_negative(text: str) -> float:
    """A finite number from 0, as the `type` of a flag."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {_cut(text)}")
    return number


def duration(text: str) -> float:
    """Seconds, from days or hours as `7d` or `12h`, as the `type` of a flag."""
    match = re.fullmatch(r"([0-9]+)([dh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected days or hours, as 7d or 12h, got {_cut(text)}")
    return _whole(match[1]) * _UNIT_SECONDS[match[2]]


def positive(text: str) -> int:
    """An integer from 1, as the `type` of a flag."""
    if (number := natural(text)) == 0:
        raise argparse.ArgumentTypeError("expected a whole number from 1, got '0'")
    return number


def small_text(path: str, most_bytes: int) -> str:
    """The text of a file that a flag names; a pipe serves too. `/dev/zero` and its like would fill any memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8, or larger than that.
    """
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes:,} bytes")
    return data.decode("utf-8-sig")


def split_beam(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our flags, and Beam's behind `--`."""
    if "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]
