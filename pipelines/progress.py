"""Progress that people can read, from a job whose `run()` blocks and shows nothing.

Beam's in-process runner works in this very process: the steps add to one set of numbers here, and a thread prints
them; worker processes of this box tell theirs by a pipe. On other engines the numbers stay zero here, and the engine's
own pages show its progress. Nothing that is committed or reported comes from these numbers: they serve the eye alone.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from schemas.cli.progress import Screen, printed


@dataclass(kw_only=True)
class Progress:
    """What was done so far in this process."""

    documents: int = 0
    tokens_found: int = 0
    """Tokens of new examples, all counted before the teacher starts."""
    examples: int = 0
    tokens: int = 0
    teacher_started: float | None = None
    last_answer: float = 0.0
    """When tokens were last added."""
    committing: bool = False
    lock: contextlib.AbstractContextManager[bool] = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """Forgets an earlier run."""
        with self.lock:
            self.documents = self.tokens_found = self.examples = self.tokens = 0
            self.teacher_started, self.committing = None, False

    def add(self, *, documents: int = 0, tokens_found: int = 0, examples: int = 0, tokens: int = 0) -> None:
        """Adds to the numbers."""
        with self.lock:
            self.documents += documents
            self.tokens_found += tokens_found
            self.examples += examples
            self.tokens += tokens
            if tokens:
                self.last_answer = time.monotonic()

    def numbers(self) -> dict[str, int]:
        """The numbers that `add` takes, as they stand."""
        with self.lock:
            return {
                "documents": self.documents,
                "tokens_found": self.tokens_found,
                "examples": self.examples,
                "tokens": self.tokens,
            }

    def start_teacher(self) -> None:
        """From now on speed and time left are known."""
        with self.lock:
            self.teacher_started = self.teacher_started or time.monotonic()

    def start_commit(self) -> None:
        """All shards are there; the version is not yet."""
        with self.lock:
            self.committing = True

    def line(self) -> str:
        """One line: what, how much, how fast, how long still; done is only what is committed."""
        if self.committing:
            return f"committing: {self.documents:,} documents read, {self.tokens:,} tokens scored"
        if self.teacher_started is None:
            return f"reading: {self.documents:,} documents, {self.tokens_found:,} new tokens"
        if 0 < self.tokens_found <= self.tokens:
            waited = _duration(time.monotonic() - self.last_answer)
            return (
                f"teacher: all of {self.tokens:,} tokens scored; encoding, sealing and committing the last shards "
                f"(for {waited})"
            )
        seconds = max(time.monotonic() - self.teacher_started, 1e-9)
        speed = self.tokens / seconds
        share = self.tokens / self.tokens_found if self.tokens_found else 1.0
        left = (self.tokens_found - self.tokens) / speed if speed else float("inf")
        return (
            f"teacher: {self.examples:,} examples, {self.tokens:,} of {self.tokens_found:,} tokens "
            f"({math.floor(100 * share)}%), {speed:,.0f} tokens/s, {_duration(left)} left"
        )


PROGRESS = Progress()


@dataclass(kw_only=True)
class Shards:
    """Shards that a verb which asks no teacher has gone through in this process: first it looks, then it writes."""

    verb: str = ""
    sources: int = 0
    """To be looked at."""
    units: int = 0
    """To be finished: written, or found to be there already; 0 where a verb does all of it as it looks."""
    seen: int = 0
    finished: int = 0
    lock: contextlib.AbstractContextManager[bool] = field(default_factory=threading.Lock)

    def expect(self, verb: str, *, sources: int, units: int = 0) -> None:
        """Forgets an earlier call: a new one begins."""
        with self.lock:
            self.verb, self.sources, self.units = verb, sources, units
            self.seen = self.finished = 0

    def add(self, *, seen: int = 0, finished: int = 0) -> None:
        """Adds to the numbers."""
        with self.lock:
            self.seen += seen
            self.finished += finished

    def line(self) -> str:
        """One line: what, how much, of how much."""
        what, done, of = ("looked at", self.seen, self.sources)
        if self.finished:
            what, done, of = ("finished", self.finished, self.units)
        if 0 < of <= done:
            then = "writing" if self.units and not self.finished else "committing"
            return f"{self.verb}: all of {of:,} shards {what}; {then}"
        return f"{self.verb}: {done:,} of {of:,} shards {what} ({done / max(of, 1):.0%})"


SHARDS = Shards()


@contextlib.contextmanager
def shown(enabled: bool, stream: Screen | None = None) -> Iterator[None]:
    """Prints `PROGRESS` to stderr while the block runs: one line that changes, or plain lines without a terminal."""
    PROGRESS.reset()
    with printed(PROGRESS.line, enabled, stream):
        yield


@contextlib.contextmanager
def shards_shown(enabled: bool, stream: Screen | None = None) -> Iterator[None]:
    """Prints `SHARDS` in the same way."""
    with printed(SHARDS.line, enabled, stream):
        yield


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
