"""A package's log on stderr while one of its verbs runs; as a library it leaves that to its caller's logging."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def log_on_stderr(package: str, level: int, form: str | logging.Formatter = "%(message)s") -> Iterator[None]:
    """While the block runs, a package's messages from a level on are lines of this form."""
    logger, handler = logging.getLogger(package), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(form) if isinstance(form, str) else form)
    before, logger.propagate = logger.level, False
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = True
