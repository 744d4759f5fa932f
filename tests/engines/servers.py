"""Engines and object stores as processes: started on free ports, waited for, stopped by their own id, logs kept."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.engines.fetch import ENGINES

START_SECONDS = 90
"""Time for a server to come up: two seconds alone, much more beside other work on two cores."""


_PORTS = iter(random.SystemRandom().sample(range(20_000, 32_000), 12_000))
"""Each once, and in another order in every process: tests run in two."""


class Server:
    """One process in a session of its own, so that its children end with it. Its log outlives it."""

    def __init__(
        self,
        name: str,
        command: Sequence[object],
        folder: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Returns when the server is ready; fails with the end of its log when it dies, or takes too long."""
        end = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                pytest.fail(f"{self.name} ended with {self.process.returncode}\n{self.last_words()}")
            if time.monotonic() > end:
                pytest.fail(f"{self.name} was not ready after {seconds} s\n{self.last_words()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to the process alone, as the kernel does when memory is short: its children live on."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Asks the process to end, and then kills what is left of it and its children."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def last_words(self, lines: int = 30) -> str:
        """The end of the log, and where all of it is."""
        return f"{self.log}:\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def engine(name: str) -> Path:
    """Where `make engines` has put something; a test without it is skipped, and fails where CI runs it."""
    path = ENGINES / name
    if not path.exists():
        reason = f"{name} is not there: run `make engines`"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return path


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to whoever connects somewhere: between this
    look and the server's start nobody gets it by chance."""
    for port in _PORTS:
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("localhost", port))
            return port
    raise RuntimeError("no port is free")


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as tried:
        tried.settimeout(1)
        return tried.connect_ex(("localhost", port)) == 0


def answers(url: str) -> bool:
    """Whether a server answers a GET with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
