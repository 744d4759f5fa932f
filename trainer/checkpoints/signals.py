"""SIGTERM and SIGINT end a run, and lose nothing: the first is remembered and acted upon when a step is done.

Before the first step and after the last nothing is lost by ending, so there it ends at once, as a `KeyboardInterrupt`
does. A second signal always ends at once, by the signal itself. Under torchrun the terminal's signal and the
launcher's own reach a rank both, so there a second one counts only after some seconds.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DOUBLED_SECONDS = 5.0


class Stopped(KeyboardInterrupt):
    """A signal ended the run. `str()` is what to tell the user; `status` what a shell says of that signal."""

    def __init__(self, number: int, told: str) -> None:
        super().__init__(told)
        self.number, self.status = number, 128 + number


class Signals:
    """What was asked for so far."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that came, if one came."""
        self.waits = 0
        """Above 0 a first signal waits for the step's end: so many are inside of `waiting`."""
        self._time = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While a first signal is only remembered."""
        self.waits += 1
        try:
            yield
        finally:
            self.waits -= 1

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The handler: in the main thread, between two instructions of Python."""
        now = time.monotonic()
        if self.asked is not None:
            if is_launched() and now - self._time < _DOUBLED_SECONDS:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.asked, self._time = number, now
        if not self.waits:
            raise Stopped(number, f"{name_of(number)}: stopped")
        os.write(2, _told(number))


@contextmanager
def watched() -> Iterator[Signals]:
    """Takes both signals while it lasts; outside the main thread there is nothing to take."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before: dict[Any, Any] = {number: signal.signal(number, signals.receive) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def name_of(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name


def is_launched() -> bool:
    """Whether torchrun, or what does its work, started this process as one of several ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1") or 1) > 1


def _told(number: int) -> bytes:
    return (
        f"{name_of(number)}: this step is finished and saved first; a second signal ends at once\n".encode()
    )
