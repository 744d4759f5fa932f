"""A verb as a process: signals become an exception that lets every `finally` run, and any error one line and a status.

SIGTERM, SIGHUP and Ctrl-C raise `Ended` where the main thread stands: leases are given back, parts of files removed,
the report is written, and the status is 128 and the signal's number, as shells have it. A second one ends the process
at once. A verb may put handlers of its own in their place (`train` finishes its step and saves).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from schemas.errors import (
    SYSTEM_REFUSED,
    NoCacheError,
    StudentError,
    TeachonceError,
    TooManyRejectsError,
    UsageError,
    advice,
    one_line,
)

DONE, FAILED, USAGE, TOO_MANY_REJECTS, OUT_OF_TIME = 0, 1, 2, 3, 4
"""Exit statuses of every verb."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OURS_TO_TAKE = (signal.SIG_DFL, signal.default_int_handler)
_RECEIVED: list[int] = []
"""The signal that ends this process's verb."""


class Ended(KeyboardInterrupt):
    """A signal asks this process to end. Made of one text, so that an engine can make it again."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """While the block runs, signals that would end the process raise `Ended`; what is ignored stays ignored."""
    _RECEIVED.clear()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.getsignal(n) for n in _SIGNALS if signal.getsignal(n) in _OURS_TO_TAKE}

    def end(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once
        _RECEIVED.append(number)
        raise Ended(f"ended by {signal.Signals(number).name}")

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _RECEIVED.clear()


def refuse_more_work() -> None:
    """For the steps of a run: what a signal raised may have been swallowed by a library, which tells nobody.

    Raises:
        TeachonceError: a signal asked this process to end.
    """
    if _RECEIVED:
        raise TeachonceError("this process was asked to end", got=signal.Signals(_RECEIVED[0]).name)


def refuse_to_go_on() -> None:
    """Raises again what an engine has turned into an error of its own.

    Raises:
        Ended: a signal asked this process to end.
    """
    if _RECEIVED:
        raise Ended(f"ended by {signal.Signals(_RECEIVED[0]).name}")


def status_of(error: BaseException) -> int:
    """The exit status that an error means."""
    if isinstance(error, UsageError | NoCacheError | StudentError):
        return USAGE
    if isinstance(error, KeyboardInterrupt):
        return 128 + (_RECEIVED[0] if _RECEIVED else signal.SIGINT)
    return TOO_MANY_REJECTS if isinstance(error, TooManyRejectsError) else FAILED


def reason_of(error: BaseException) -> str:
    """An error as one line for people."""
    match error:
        case TeachonceError():
            return str(error)
        case KeyboardInterrupt():
            return f"ended by {signal.Signals(_RECEIVED[0]).name}" if _RECEIVED else "interrupted"
        case BrokenPipeError():
            return "nobody reads the output any more"
        case MemoryError():
            return f"out of memory: {one_line(error)}" if str(error) else "out of memory"
        case RecursionError():
            return "something that was read is nested too deeply"
        case OSError(strerror=str(said)):
            where = "" if error.filename is None else f": {error.filename}"
            return f"the system refuses{where}: {said}. {advice(error)}"
    told = f"{type(error).__name__}: {one_line(error)}"
    if SYSTEM_REFUSED.search(str(error)):
        return f"the system refuses: {told}. {advice(error)}"
    return f"an error that nobody foresaw: {told}. Run again with --traceback, and report what it shows"


def plain_streams() -> None:
    """No text is too foreign for a terminal or a log: what its encoding lacks is written as an escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this process
            setattr(sys, name, io.StringIO())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Writes what is still held back, while an error can be told.

    Raises:
        OSError: stdout is full, or nobody reads it.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # or Python tries again at its exit
        raise


def leave_within(seconds: float, status: int) -> None:
    """Ends this process with its status though some library's thread does not."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
