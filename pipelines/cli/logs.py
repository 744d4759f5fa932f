"""What a verb lets through of logs: the libraries' bars stay off the screen, the pipelines' warnings come on it."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from transformers.utils import logging as transformers_logging

from schemas.cli.logs import log_on_stderr


def warnings_on_stderr() -> AbstractContextManager[None]:
    """What the pipelines warn of."""
    return log_on_stderr("pipelines", logging.WARNING, "teachonce: %(message)s")


def quiet() -> None:
    """The teacher's loading bars stay off the screen."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
