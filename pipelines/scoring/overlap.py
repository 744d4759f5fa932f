"""Units beside each other in one process: while the teacher is at one, the one before is sealed and stored, and the
next is read and made ready.

An engine of one thread hands over a unit when it has the line of the one before, so that a teacher on an accelerator
would wait meanwhile. There the teacher's step begins a unit and hands on a number for it; the next step, in the same
stage and process, waits for the line. Engines with several threads need none of that.

Guarantees: a line is given when its shard is durable, never before; what a unit raised is raised where its line is
waited for; no unit goes on when its run has ended. Cost: two units are in memory where there was one.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.corpus.examples import Example
from pipelines.scoring.units import ShardLine
from schemas.cli.process import refuse_more_work
from schemas.errors import TeachonceError

IN_WORK = 2
"""Units of a process that are in work at once: one with the teacher, one that is sealed and stored or waits for it."""

_RUNS: dict[str, UnitThreads] = {}
"""Of this process, by run."""
_LOCK = threading.Lock()


class UnitThreads:
    """The threads of one run that units are scored in."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(IN_WORK, thread_name_prefix="teachonce-unit")
        self._ended = threading.Event()
        self._numbers = itertools.count()
        self._begun: dict[int, Future[ShardLine]] = {}

    def begin(self, score: Callable[[Sequence[Example]], ShardLine], examples: Sequence[Example]) -> int:
        """The number of a unit that is begun."""
        number = next(self._numbers)
        self._begun[number] = self._threads.submit(score, examples)
        return number

    def line(self, number: int) -> ShardLine:
        """The line of a unit that was begun here; once. Waits for it, and raises what the unit raised."""
        return self._begun.pop(number).result()

    def refuse_more(self) -> None:
        """For the steps of a unit.

        Raises:
            TeachonceError: the run has ended, or this process was asked to.
        """
        refuse_more_work()
        if self._ended.is_set():
            raise TeachonceError("the run has ended")

    def end(self) -> None:
        """Returns when no unit is in work any more; what is still being stored becomes an orphan."""
        self._ended.set()
        self._threads.shutdown(cancel_futures=True)


def threads_of(run: str) -> UnitThreads:
    """The threads of a run in this process."""
    with _LOCK:
        return _RUNS.setdefault(run, UnitThreads())


def end_units(run: str) -> None:
    """Ends what a run has in work in this process: nothing, unless it failed."""
    with _LOCK:
        threads = _RUNS.pop(run, None)
    if threads is not None:
        threads.end()


class AwaitLines(beam.DoFn):  # type: ignore[misc]
    """Numbers of units -> their lines, in the same order; of all but the newest unit before another one is taken."""

    def __init__(self, run: str) -> None:
        self._run = run

    def start_bundle(self) -> None:
        self._begun = deque[int]()

    def process(self, number: int) -> Iterator[Any]:
        self._begun.append(number)
        if len(self._begun) >= IN_WORK:
            yield self._line()

    def finish_bundle(self) -> Iterator[Any]:
        while self._begun:
            window = GlobalWindow()
            yield WindowedValue(self._line(), window.max_timestamp(), [window])

    def _line(self) -> ShardLine:
        return threads_of(self._run).line(self._begun.popleft())
