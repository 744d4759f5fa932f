"""Numbers for the processes of one run on one machine: each that has accelerators takes the one of its number.

They find their places without talking to each other, under any engine: each takes the lowest number whose lock file
nobody holds. The system releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import tempfile
from pathlib import Path


@functools.cache
def claim_number(run: str) -> int:
    """The lowest number that no other living process of this run holds on this machine. The same at every call."""
    folder = Path(tempfile.gettempdir()) / f"teachonce-{os.getuid()}-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.count():
        descriptor = os.open(folder / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return number  # the file stays open, and locked, for as long as this process lives
    raise AssertionError("itertools.count() ends")


def forget_claims(run: str) -> None:
    """Removes what the processes of a finished run left on this machine."""
    folder = Path(tempfile.gettempdir()) / f"teachonce-{os.getuid()}-{run}"
    with contextlib.suppress(OSError):  # not there; or a process that is late has just come
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
