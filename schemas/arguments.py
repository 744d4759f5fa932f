"""`Parser`: argparse for every verb, with wrong flags as `UsageError`s: one line, exit status 2.

An abbreviated flag is refused, because a later release may add a flag that makes it ambiguous. `--help` keeps the line
breaks of description and epilog, so that examples stand as they were written.
"""

from __future__ import annotations

import argparse
import math
import re
from typing import Any, NoReturn

from schemas.errors import UsageError

_UNIT_SECONDS = {"d": 86_400.0, "h": 3_600.0}


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


def natural(text: str) -> int:
    """An integer from 0, as the `type` of a flag."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def not_negative(text: str) -> float:
    """A finite number from 0, as the `type` of a flag."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return number


def duration(text: str) -> float:
    """Seconds, from days or hours as `7d` or `12h`, as the `type` of a flag."""
    match = re.fullmatch(r"([0-9]+)([dh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected days or hours, as 7d or 12h, got {text!r}")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def positive(text: str) -> int:
    """An integer from 1, as the `type` of a flag."""
    if (number := natural(text)) == 0:
        raise argparse.ArgumentTypeError("expected a whole number from 1, got '0'")
    return number
