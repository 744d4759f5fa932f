"""A package's log on stderr while one of its verbs runs; as a library it leaves that to its caller's logging.

Where nobody sits, each line begins with the time: a log is read the next morning.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator


def is_watched() -> bool:
    """Whether stderr is a terminal: there bars may move; elsewhere lines stand."""
    return bool(sys.stderr.isatty())


def stamp() -> str:
    """The time as lines of a log begin with it: `2025-03-01T02:15:09+0100`."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class _Timed(logging.Formatter):
    """Another formatter's lines behind the time."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        at = stamp()
        return "\n".join(f"{at} {line}" for line in self._inner.format(record).split("\n"))


@contextlib.contextmanager
def log_on_stderr(package: str, level: int, form: str | logging.Formatter = "%(message)s") -> Iterator[None]:
    """While the block runs, a package's messages from a level on are lines of this form."""
    logger, handler = logging.getLogger(package), logging.StreamHandler()
    plain = logging.Formatter(form) if isinstance(form, str) else form
    handler.setFormatter(plain if is_watched() else _Timed(plain))
    before, logger.propagate = logger.level, False
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = True
