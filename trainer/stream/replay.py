"""Batches on time: two background threads read runs and collate batches ahead of the training step.

Decoding releases the GIL (Arrow, numpy, torch), so threads do; no worker process, no pickled batch. A thread's error
is raised in the training loop, at the batch that it would have given. Cost in memory: two runs of rows and
`BATCHES_AHEAD` batches, whatever the size of the cache.

To torch this is a map-style dataset whose items are addressed by (epoch, number), and a batch sampler of addresses:
so the skipping with which transformers resumes skips integers, and no data.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.batches.pool import Pool, pooled
from trainer.stream.order import Order
from trainer.stream.runs import read_runs
from trainer.stream.side import Side

RUNS_AHEAD = 1
BATCHES_AHEAD = 8
_POLL_SECONDS = 0.1

T = TypeVar("T")


class Address(NamedTuple):
    """One of a rank's batches: its epoch and its number in it."""

    epoch: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of each step one of `world_size` ranks takes, and how it is cut into batches.

    All ranks take as many batches: in an epoch's last step, those for which no row is left take a copy of another
    batch that counts for nothing. So no row is dropped, and none counts twice.
    """

    batch_size: int
    """Rows of a batch, of which a rank takes one or more a step."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be from 0 to {self.world_size - 1}, but got {self.rank}")
        if self.batch_size < 1:
            raise ValueError(f"a batch needs rows, but got {self.batch_size}")

    def lanes(self, order: Order) -> range:
        """This rank's.

        Raises:
            ValueError: they cannot be shared, or a step is no whole number of batches.
        """
        if order.lanes % self.world_size:
            raise ValueError(f"{order.lanes} lanes cannot be shared by {self.world_size} ranks alike")
        if order.batch_size % (self.world_size * self.batch_size):
            raise ValueError(f"a step of {order.batch_size} rows is no whole number of batches on each rank")
        return range(self.rank, order.lanes, self.world_size)

    def batches_a_step(self, order: Order) -> int:
        """Of each rank; fewer in an epoch's last step."""
        return order.batch_size // (self.world_size * self.batch_size)

    def batches_of(self, order: Order, step: int) -> int:
        """Of each rank in one step."""
        most = -(-len(order.step_rows(step)) // self.world_size)
        return -(-most // self.batch_size)

    def num_batches(self, order: Order) -> int:
        """That each rank takes in an epoch."""
        last = order.num_steps - 1
        return 0 if last < 0 else last * self.batches_a_step(order) + self.batches_of(order, last)

    def addresses(self, order: Order, epoch: int) -> Iterator[Address]:
        """This rank's batches of one epoch."""
        return (Address(epoch, number) for number in range(self.num_batches(order)))

    def step(self, order: Order, address: Address) -> int:
        """Which of the run's steps a batch is of, from 0."""
        return address.epoch * order.num_steps + address.number // self.batches_a_step(order)

    def after(self, order: Order, address: Address) -> Address:
        """The batch that this rank takes next."""
        if address.number + 1 < self.num_batches(order):
            return Address(address.epoch, address.number + 1)
        return Address(address.epoch + 1, 0)


def read_batches(
    sides: Sequence[Side],
    order: Order,
    collation: Collation,
    share: Share,
    start: Address,
    *,
    open_runs: Callable[[int, int], Any] | None = None,
) -> Iterator[tuple[Address, Batch]]:
    """This rank's batches from an address on, without end. Reads from the run that holds the first one.

    `open_runs` gives the runs from an epoch's n-th on, where they are not read for this rank alone; it is closed.
    """
    lanes, each = share.lanes(order), share.batches_a_step(order)
    first = start.number // each // order.steps_a_run
    if open_runs is None:
        runs: Any = Ahead(lambda: read_runs(sides, order, lanes, start.epoch, first), RUNS_AHEAD)
    else:
        runs = open_runs(start.epoch, first)
    try:
        for run in runs:
            cuts = [
                (
                    Address(run.epoch, step * each + place),
                    rows[place * share.batch_size :][: share.batch_size],
                )
                for step, rows in zip(order.steps(run.number), run.steps, strict=True)
                for place in range(share.batches_of(order, step))
            ]
            whole = next((cut for _, cut in cuts if len(cut)), None)
            rows = run.rows
            if whole is None:
                rows, whole = _any_row(sides, order), np.zeros(1, np.int64)
            left = [(address, cut) for address, cut in cuts if address >= start]
            for at, some in itertools.groupby(left, lambda cut: collation.at(share.step(order, cut[0]))):
                cuts = list(some)
                batches = at.each(rows, [cut if len(cut) else whole for _, cut in cuts])
                for (address, cut), batch in zip(cuts, batches, strict=True):
                    yield address, batch if len(cut) else batch.weightless()
    finally:
        runs.close()


def _any_row(sides: Sequence[Side], order: Order) -> Pool:
    """For a rank that has no row in a whole run."""
    cache = next(cache for cache, rows in enumerate(order.rows) if rows)
    return pooled([(sides[cache].whole(order.some_group(cache)), np.zeros(1, np.int64))])


class Ahead(Generic[T]):
    """An iterator that runs in a thread, at most `depth` items ahead. Its errors are raised here; close it."""

    def __init__(self, start: Callable[[], Iterator[T]], depth: int) -> None:
        self._items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(start,), daemon=True, name="teachonce-ahead")
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        kind, value = self._items.get()
        if kind == "item":
            item: T = value
            return item
        self._closed.set()
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread, and waits for it."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):  # room, so that a thread that waits for some sees the end
            while True:
                self._items.get_nowait()
        self._thread.join()

    def _run(self, start: Callable[[], Iterator[T]]) -> None:
        try:
            iterator = start()
            try:
                for item in iterator:
                    if not self._put("item", item):
                        return
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001  (it is raised in the consumer's thread)
            self._put("error", error)
            return
        self._put("end", None)

    def _put(self, kind: str, value: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put((kind, value), timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


class Replay(Dataset[Batch]):
    """One side of a cache as batches by address, read ahead in the order in which a rank asks for them."""

    def __init__(
        self,
        sides: Sequence[Side],
        order: Order,
        collation: Collation,
        share: Share,
        *,
        pinned: bool = False,
        source: Callable[[Address], Any] | None = None,
    ) -> None:
        """`source` gives batches from an address on, where they are not made for this replay alone; it is closed."""
        share.lanes(order)
        self.sides, self.order, self.collation, self.share = tuple(sides), order, collation, share
        self._pinned, self._source = pinned, source or self._read
        self._ahead: Any = None
        self._next: Address | None = None

    def __len__(self) -> int:
        return self.order.num_rows

    def __getitem__(self, address: Address) -> Batch:
        self.open(address)
        found: Address
        batch: Batch
        found, batch = next(self._ahead)
        assert found == address, (found, address)
        self._next = self.share.after(self.order, address)
        return batch

    def open(self, address: Address) -> None:
        """Makes ready for this batch to be the next that is asked for."""
        if self._ahead is None or address != self._next:
            self.close()
            self._ahead, self._next = self._source(address), address

    def _read(self, start: Address) -> Ahead[tuple[Address, Batch]]:
        return Ahead(lambda: self._batches(start), BATCHES_AHEAD)

    def _batches(self, start: Address) -> Iterator[tuple[Address, Batch]]:
        for address, batch in read_batches(self.sides, self.order, self.collation, self.share, start):
            yield address, batch.pin() if self._pinned else batch

    def close(self) -> None:
        """Stops reading ahead."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._next = None


class Addresses(BatchSampler):
    """The addresses of one rank's batches in an epoch, each as a list of one."""

    def __init__(self, order: Order, share: Share) -> None:
        self.order, self.share, self.epoch = order, share, 0

    @property
    def batch_sampler(self) -> Addresses:
        """Itself: transformers looks for `set_epoch` at the loader's `batch_sampler.batch_sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Address]]:  # type: ignore[override]
        return ([address] for address in self.share.addresses(self.order, self.epoch))

    def __len__(self) -> int:
        return self.share.num_batches(self.order)


def loader(replay: Replay) -> DataLoader[Any]:
    """A plain torch loader over a replay; gives `{"batch": Batch}`."""
    return DataLoader(
        replay,
        batch_sampler=Addresses(replay.order, replay.share),
        collate_fn=_only,
        generator=torch.Generator(),
    )


def _only(batches: Sequence[Batch]) -> dict[str, Batch]:
    (batch,) = batches
    return {"batch": batch}
