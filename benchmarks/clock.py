"""Processor time by part of a run: functions are wrapped where they are looked up, and each is charged what is its own.

A part's time is that of its thread, less what the parts inside it took. What no part took is the rest: of one process
it is the whole less the sum. Generators are charged for each value that they give. What the clock itself takes is no
part's, and is told: of a part that is called for each document it would be as much as the part.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS, OWN = "calls of the clock", "clock"
_TRIALS = 20_000


class Clock:
    """Seconds of processor by part, over all threads."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads: list[dict[str, float]] = []
        self._undo: list[tuple[Any, str, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def _begin(self, name: str) -> None:
        mine = self._mine()
        now = time.thread_time()
        if mine.open:
            mine.seconds[mine.open[-1]] += now - mine.since
        mine.open.append(name)
        mine.since = now

    def _end(self) -> None:
        mine, now = self._local, time.thread_time()
        mine.seconds[mine.open.pop()] += now - mine.since
        mine.seconds[CALLS] += 1
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
                self._begin(part)
                try:
                    value = next(steps, self)
                finally:
                    self._end()
                if value is self:
                    return
                yield value

        setattr(owner, name, stepped)

    def timed(self, inner: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(inner)
        def timed(*args: Any, **options: Any) -> Any:
            self._begin(part)
            try:
                return inner(*args, **options)
            finally:
                self._end()

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
        """Seconds of each part so far, and none any more; the clock's own among them."""
        total = self._summed()
        total[OWN] = total.pop(CALLS, 0.0) * self._call_seconds()
        return dict(total)

    def _summed(self) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        with self._lock:
            for seconds in self._threads:
                for name, value in seconds.items():
                    total[name] += value
                seconds.clear()
        return total

    @functools.cache  # noqa: B019  (one clock a process)
    def _call_seconds(self) -> float:
        """Of one call that is charged, less what it charges; nothing else may be measured meanwhile."""

        def nothing() -> None:
            return

        timed = self.timed(nothing, "trial")
        started = time.thread_time()
        for _ in range(_TRIALS):
            nothing()
        plain = time.thread_time()
        for _ in range(_TRIALS):
            timed()
        whole = time.thread_time() - plain
        return max(0.0, whole - (plain - started) - self._summed()["trial"]) / _TRIALS
