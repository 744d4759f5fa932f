"""Where a verb's output leaves: what people and programs are shown holds nothing that a terminal obeys.

Each line of ours goes through `printable` where it is made. `guarded_streams` stands behind that, for what libraries
write of themselves: warnings, logs, tracebacks. It lets line ends through; colours of tables on a stdout that takes
them; and on stderr what progress needs: carriage returns and, on a terminal, the erasing of a line. Anything else that
a terminal obeys becomes an escape.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from schemas.printable import OBEYED, escape, printable

_COLOUR = r"\x1b\[[0-9;]*m"
_REDRAW = r"\x1b\[[KA]"
"""The rest of a line erased; a line up."""


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """While the block runs, what is written to stdout and stderr is made harmless."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _guarded(sys.stdout, r"\n", _COLOUR), _guarded(sys.stderr, r"[\r\n]", _REDRAW)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_lines(*lines: str) -> None:
    """Lines to stdout, each as one line whatever it holds."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def print_json(value: Any) -> None:
    """A value to stdout as JSON: texts as they are, if stdout can hold them; what a terminal obeys as `\\u001b`."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    text = json.dumps(value, indent=2, ensure_ascii=plain)
    sys.stdout.write("\n".join(OBEYED.sub(_json_escape, line) for line in text.split("\n")) + "\n")


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def _guarded(stream: Any, passed: str, to_terminals: str) -> Any:
    """`stream` is what stands in a standard stream's place; None where who started this process closed it."""
    if stream is None or isinstance(stream, _Guarded):
        return stream
    if stream.isatty() or os.environ.get("FORCE_COLOR"):
        passed = f"{passed}|{to_terminals}"
    return _Guarded(stream, re.compile(f"(?P<passed>{passed})|{OBEYED.pattern}"))


class _Guarded:
    """A stream in whose place this one writes; everything else of it is its own."""

    def __init__(self, stream: Any, watched: re.Pattern[str]) -> None:
        self._stream, self._watched = stream, watched

    def write(self, text: str) -> int:
        self._stream.write(self._watched.sub(_pass_or_escape, text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _pass_or_escape(match: re.Match[str]) -> str:
    return match["passed"] or escape(match)
