"""One worker process of `--workers`: Beam's own harness, told and watched by the driver's `pipelines.engine.processes`.

It says nothing by itself: its errors go to the driver, its progress to a pipe, one JSON object a line. It ends with its
driver, however that ends: then its standard input closes.
"""

from __future__ import annotations

import json
import os
import threading

from apache_beam.runners.worker import sdk_worker_main
from transformers.utils import logging as transformers_logging

from pipelines.progress import PROGRESS

_SECONDS = 0.5


def main(pipe: int) -> None:
    """Works until the driver has no more work."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    threading.Thread(target=_end_with_driver, daemon=True).start()
    told, stop = Told(pipe), threading.Event()
    teller = threading.Thread(target=told.until, args=(stop,), daemon=True)
    teller.start()
    try:
        sdk_worker_main.main([])
    finally:
        stop.set()
        teller.join()
        told.tell()


class Told:
    """What the driver was told of `PROGRESS` so far; it is told differences."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._before = PROGRESS.numbers()

    def until(self, stop: threading.Event) -> None:
        """Tells every half second."""
        while not stop.wait(_SECONDS):
            self.tell()

    def tell(self) -> None:
        """Writes one line, if there is news. A pipe that is closed ends the process by the other way."""
        now = PROGRESS.numbers()
        if now != self._before:
            news = {name: now[name] - self._before[name] for name in now}
            line = json.dumps({**news, "teacher": PROGRESS.teacher_started is not None}) + "\n"
            os.write(self._pipe, line.encode())
        self._before = now


def _end_with_driver() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
