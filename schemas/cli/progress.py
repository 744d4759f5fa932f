"""One style of progress for all that takes long: a line that changes on a terminal, a line a minute elsewhere.

Who works keeps numbers, and a function makes a line of them; a thread prints it to stderr while the work goes on.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from schemas.cli.logs import stamp
from schemas.network import hub_folder
from schemas.printable import printable

_PLAIN_SECONDS = 60.0
_TERMINAL_SECONDS = 0.5


@runtime_checkable
class Screen(Protocol):
    """What lines are written to: stderr, or what stands in its place."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...


class Counted:
    """So many of so many; threads may add."""

    def __init__(self, what: str, things: str, total: int) -> None:
        self._what, self._things, self._total, self._done = what, things, total, 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """One more is done."""
        with self._lock:
            self._done += 1

    def set(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        with self._lock:
            self._done, self._total = done, total

    def line(self) -> str:
        """For instance `verify: 3 of 12 shards (25%)`; nothing while nobody knows of how many."""
        if not self._total:
            return ""
        share = self._done / max(1, self._total)
        return f"{self._what}: {self._done:,} of {self._total:,} {self._things} ({share:.0%})"


def downloaded(name: str) -> str:
    """How much of a model of the hub is here, while its client fetches it: `download org/model: 1.25 GB`."""
    size = 0
    for file in hub_folder(name).glob("blobs/*"):
        with contextlib.suppress(OSError):  # a part gets its name
            size += file.stat().st_size
    return f"download {printable(name)}: {size / 1e9:.2f} GB" if size else ""


@contextlib.contextmanager
def printed(line: Callable[[], str], enabled: bool = True, stream: Screen | None = None) -> Iterator[None]:
    """Prints a line to stderr while the block runs, whenever it has changed."""
    stop = threading.Event()
    out = stream or sys.stderr
    thread = threading.Thread(target=_print_until, args=(line, stop, out), daemon=True)
    if enabled:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if enabled:
            thread.join()


def _print_until(line_of: Callable[[], str], stop: threading.Event, out: Screen) -> None:
    terminal = out.isatty()
    last = ""
    while not stop.wait(_TERMINAL_SECONDS if terminal else _PLAIN_SECONDS):
        line = line_of()
        if line != last:
            out.write(f"\r\x1b[K{line}" if terminal else f"{stamp()} {line}\n")
            out.flush()
        last = line
    if terminal:
        out.write("\r\x1b[K")
        out.flush()
