"""Processor time by part of a run: functions are wrapped where they are looked up, and each is charged what is its own.

A part's time is that of its thread, less what the parts inside it took. What no part took is the rest: of one process
it is the whole less the sum. Generators are charged for each value that they give.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Seconds of processor by part, over all threads."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads: list[dict[str, float]] = []
        self._undo: list[tuple[Any, str, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        mine = self._mine()
        now = time.thread_time()
        if mine.open:
            mine.seconds[mine.open[-1]] += now - mine.since
        mine.open.append(name)
        mine.since = time.thread_time()
        try:
            yield
        finally:
            now = time.thread_time()
            mine.seconds[mine.open.pop()] += now - mine.since
            mine.since = now

    def _mine(self) -> Any:
        mine = self._local
        if not hasattr(mine, "seconds"):
            mine.seconds, mine.open, mine.since = defaultdict(float), [], 0.0
            with self._lock:
                self._threads.append(mine.seconds)
        return mine

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """From now on the calls of `owner.name` are charged to a part."""
        inner = getattr(owner, name)
        self._undo.append((owner, name, inner))
        setattr(owner, name, self.timed(inner, part))

    def wrap_steps(self, owner: Any, name: str, part: str) -> None:
        """The same of a function that gives an iterator: each step is charged."""
        inner = getattr(owner, name)
        self._undo.append((owner, name, inner))

        @functools.wraps(inner)
        def stepped(*args: Any, **options: Any) -> Iterator[Any]:
            steps = iter(inner(*args, **options))
            while True:
                with self.part(part):
                    value = next(steps, self)
                if value is self:
                    return
                yield value

        setattr(owner, name, stepped)

    def timed(self, inner: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(inner)
        def timed(*args: Any, **options: Any) -> Any:
            with self.part(part):
                return inner(*args, **options)

        return timed

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Puts something in another's place until `undo`."""
        self._undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        for owner, name, inner in reversed(self._undo):
            setattr(owner, name, inner)
        self._undo.clear()

    def taken(self) -> dict[str, float]:
        """Seconds of each part so far, and none any more."""
        total: dict[str, float] = defaultdict(float)
        with self._lock:
            for seconds in self._threads:
                for name, value in seconds.items():
                    total[name] += value
                seconds.clear()
        return dict(total)
