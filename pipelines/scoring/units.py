"""The work on one unit: score its examples, encode them, seal one shard, store it; return one line about it.

Inside a unit the next batch is collated and the last one encoded, by one thread, while the teacher computes. Out of
memory halves a batch until it fits, and the budget of all that follow; an example that does not fit alone, whose
answer is not finite, or that breaks a rule of the cache's own reader, is rejected alone. Threads of one process take
turns at the teacher: two units in its memory would halve what fits. What is done before and after a turn is done beside
the other threads' turns.
"""

from __future__ import annotations

import itertools
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.corpus.examples import Example
from pipelines.progress import PROGRESS
from pipelines.scoring.encode import Encoded, without
from pipelines.scoring.row_checks import Reject, askable, encode_sound
from pipelines.scoring.written import Writer
from pipelines.teacher.batching import collate, cost_of, each_batch
from pipelines.teacher.budget import LARGEST_TOKENS, Budget
from pipelines.teacher.calls import is_out_of_memory
from pipelines.teacher.model import Answer, Batch, Teacher
from pipelines.tolerances import NOT_FINITE, TOO_LARGE
from schemas.cli.process import refuse_more_work
from schemas.rows.rows import Rows
from schemas.shards.held_out import counts_to_bytes
from schemas.shards.rewrite import seal_rows
from schemas.shards.seal import SealedShard, Totals, length_histogram
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.memory import Unscored, write_unscored


class ShardLine(NamedTuple):
    """One line of metadata about a finished unit: all that leaves the teacher's step. Plain types only."""

    unit: str
    name: str | None
    """None when every example of the unit was rejected."""
    size_bytes: int
    totals: dict[str, Any]
    work: dict[str, Any]
    rejects: list[tuple[str, str, int, str | None]]
    replaces: tuple[str, dict[str, Any]] | None = None
    """A live shard that leaves with this line, and its totals."""
    counts: bytes = b""
    """Rows of each row group, and those held out, for the commit's index; empty where the footer is to be asked."""


@dataclass(kw_only=True)
class Work:
    """Seconds and tokens that a unit took."""

    tokens: int = 0
    padded_tokens: int = 0
    teacher_seconds: float = 0.0
    encode_seconds: float = 0.0
    """Encoding, beside the teacher, and then sealing and storing."""
    unit_seconds: float = 0.0
    batches: int = 0
    budget_tokens: int = 0
    """Padded tokens of a batch that the process had come to."""
    worker: str = field(default_factory=lambda: f"{platform.node()}:{os.getpid()}")
    """The process that scored the unit."""


@dataclass(frozen=True, kw_only=True)
class UnitScorer:
    """A teacher with where its shards go."""

    teacher: Teacher
    root: str
    header: Header
    budget: Budget
    row_group_tokens: int
    deadline: float | None = None
    """Seconds since the epoch after which no unit is begun."""
    turns: AbstractContextManager[bool] = field(default_factory=threading.Lock)
    goes_on: Callable[[], None] = refuse_more_work
    """Asked before each batch, and before anything is stored; raises where the run has ended."""
    writing: Budget = field(default_factory=lambda: Budget(tokens=LARGEST_TOKENS))
    """What fits when the teacher writes, which takes other memory than scoring."""

    def score(self, unit: str, examples: Sequence[Example]) -> ShardLine:
        """Scores a unit and stores its shard, durably, before it returns."""
        work = Work()
        fine, rejects = askable(examples, self.header.spec, num_embeddings(self.teacher))
        with ThreadPoolExecutor(1) as side:
            with self.turns:
                started = time.monotonic()
                if self.deadline is not None and time.time() >= self.deadline:
                    return no_shard(unit, postponed_examples=len(examples))
                if self.header.spec.generation is not None:
                    fine, mute = Writer(self.teacher, self.budget, self.writing).answered(fine)
                    work.teacher_seconds += time.monotonic() - started
                    rejects += mute
                PROGRESS.add(examples=len(rejects), tokens=sum(e.num_tokens for e, _ in rejects))
                waiting = self._asked(side, fine, work, rejects)
            found = [future.result() for future in waiting]
        encoded = [part for parts, _ in found for part in parts]
        rejects += [reject for _, bad in found for reject in bad]
        self.goes_on()
        work.budget_tokens = self.budget.tokens
        unscored = [(e.document_hash, e.window_index, e.window_count, reason) for e, reason in rejects]
        # before the shard: whoever finds that also knows why some rows are not in it
        write_unscored(Storage.at(self.root), self.header, itertools.starmap(Unscored, unscored))
        sealing = time.monotonic()
        line = self._store(unit, encoded) if encoded else no_shard(unit)
        work.encode_seconds += time.monotonic() - sealing
        work.unit_seconds = time.monotonic() - started
        written: list[tuple[str, str, int, str | None]] = [
            (reason, e.file, e.offset, e.document_id or e.id.hex()) for e, reason in rejects
        ]
        return line._replace(work=asdict(work), rejects=written)

    def _asked(
        self, side: ThreadPoolExecutor, examples: Sequence[Example], work: Work, rejects: list[Reject]
    ) -> list[Future[tuple[list[Encoded], list[Reject]]]]:
        """All batches, the encoding of each beside the next one's forward; what is rejected is added to `rejects`."""
        if self.teacher.device.index is not None:
            torch.cuda.set_device(self.teacher.device)  # each thread has a device of its own
        plan = each_batch(
            [cost_of(example, self.header.spec, self.teacher.pictures) for example in examples],
            lambda: self.budget.tokens,
            on_device=self._on_device,
            batching=self.teacher.batching,
        )
        parts = ([examples[i] for i in batch] for batch in plan)
        waiting = []
        for members, future in _ahead((part, side.submit(self._collate, part)) for part in parts):
            self.goes_on()
            for scored, answer in self._answers(members, future.result(), work):
                if answer is None:
                    rejects += [(example, TOO_LARGE) for example in scored]
                    continue
                waiting.append(side.submit(self._encode, scored, answer, work))
                rejects += _not_finite(scored, answer)
            PROGRESS.add(examples=len(members), tokens=sum(e.num_tokens for e in members))
        return waiting

    def _answers(
        self, members: list[Example], batch: Batch, work: Work
    ) -> Iterator[tuple[list[Example], Answer | None]]:
        """One answer; or, where memory does not suffice, those of the halves; None for one example too large."""
        size = batch.padded_tokens
        if len(members) == 1 or size <= self.budget.tokens:
            answer = self._answer(batch, work)
            if answer is not None or len(members) == 1:
                yield members, answer
                return
            self.budget.failed(size)
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            yield from self._answers(half, self._collate(half), work)

    def _answer(self, batch: Batch, work: Work) -> Answer | None:
        """The teacher's answer; None where its memory does not suffice."""
        started, answer = time.monotonic(), None
        try:
            answer = self.teacher.answer(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        seconds = time.monotonic() - started
        work.teacher_seconds += seconds
        if answer is None:
            if self._on_device:
                torch.cuda.empty_cache()
            return None
        _, width = batch.input_ids.shape
        self.budget.took(width=width, padded_tokens=batch.padded_tokens, seconds=seconds)
        work.batches += 1
        work.tokens += batch.num_tokens
        work.padded_tokens += batch.padded_tokens
        return answer

    @property
    def _on_device(self) -> bool:
        return self.teacher.device.type != "cpu"

    def _collate(self, members: Sequence[Example]) -> Batch:
        teacher = self.teacher
        padded = self._on_device and teacher.batching == "padded batches"
        return collate(
            members, teacher.spec, pad_id=teacher.pad_id, on_device=padded, pictures=teacher.pictures
        )

    def _encode(
        self, members: Sequence[Example], answer: Answer, work: Work
    ) -> tuple[list[Encoded], list[Reject]]:
        """The rows of the members whose answers are finite and keep the reader's rules. Runs in one thread."""
        started = time.monotonic()
        try:
            return self._rows_of(members, answer)
        finally:
            work.encode_seconds += time.monotonic() - started

    def _rows_of(self, members: Sequence[Example], answer: Answer) -> tuple[list[Encoded], list[Reject]]:
        keep = answer.finite.numpy()
        if not keep.all():
            counts = np.array([example.num_positions for example in members])
            members = list(itertools.compress(members, keep))
            answer = without(answer, keep, counts)
        return encode_sound(members, answer, self.teacher.spec)

    def _store(self, unit: str, encoded: Sequence[Encoded]) -> ShardLine:
        """Rows in id order, in row groups of about `row_group_tokens`, in one shard."""
        rows = Rows.concatenate([part.rows for part in encoded])
        totals = sum((part.totals for part in encoded), Totals())
        totals = replace(totals, length_histogram=length_histogram(rows.input_ids.lengths))
        shard = seal_rows(rows, self.header, self.row_group_tokens, unit=unit, totals=totals)
        Storage.at(self.root).put(shard.name, shard.data)
        return line_of(shard)


def num_embeddings(teacher: Teacher) -> int | None:
    """How many ids the teacher's embedding has; None where that is no plain table."""
    if teacher.pictures is not None:
        return None
    weight = getattr(teacher.model.get_input_embeddings(), "weight", None)
    return None if weight is None else len(weight)


def line_of(shard: SealedShard) -> ShardLine:
    """The line about a shard that was stored."""
    footer = shard.footer
    counts = counts_to_bytes([group.examples for group in footer.row_groups], shard.held_out)
    return ShardLine(footer.unit, shard.name, len(shard.data), asdict(footer.totals), {}, [], counts=counts)


def counts_of(lines: Iterable[ShardLine]) -> dict[str, bytes]:
    """Row counts of the shards of some lines, by name, as `commit` takes them."""
    return {line.name: line.counts for line in lines if line.name is not None}


def no_shard(unit: str, **work: Any) -> ShardLine:
    """The line about a unit of which nothing was stored."""
    return ShardLine(unit, None, 0, asdict(Totals()), work, [])


def _ahead(
    started: Iterator[tuple[list[Example], Future[Batch]]],
) -> Iterator[tuple[list[Example], Future[Batch]]]:
    """Starts each piece of work one step before it is asked for."""
    previous = next(started, None)
    while previous is not None:
        following = next(started, None)
        yield previous
        previous = following


def _not_finite(members: Sequence[Example], answer: Answer) -> list[tuple[Example, str]]:
    bad = (~answer.finite).numpy()
    return [(example, NOT_FINITE) for example in itertools.compress(members, bad)]
