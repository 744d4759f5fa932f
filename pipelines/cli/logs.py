"""What a verb lets through of logs: the libraries' bars stay off the screen, the pipelines' warnings come on it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def log_on_stderr() -> Iterator[None]:
    """What the pipelines warn of; as a library they leave that to their caller's logging."""
    logger, handler = logging.getLogger("pipelines"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("teachonce: %(message)s"))
    before, logger.propagate = logger.level, False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = True


def quiet() -> None:
    """The teacher's loading bars stay off the screen."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
