"""Batches on time: two background threads read windows and collate batches ahead of the training step.

Decoding releases the GIL (Arrow, numpy, torch), so threads do; no worker process, no pickled batch. A thread's error
is raised in the training loop, at the batch that it would have given. Cost in memory: two windows of rows and
`BATCHES_AHEAD` batches, whatever the size of the cache.

To torch this is a map-style dataset whose items are addressed by (epoch, number), and a batch sampler of addresses:
so the skipping with which transformers resumes skips integers, and no data.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from trainer.batches.collate import Batch, Collation
from trainer.stream.order import Order, Side, read_windows

WINDOWS_AHEAD = 1
BATCHES_AHEAD = 8
_POLL_SECONDS = 0.1

T = TypeVar("T")


class Address(NamedTuple):
    """A batch: its epoch and its number in the epoch's order. Numbers past the end are weightless stand-ins."""

    epoch: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which batches one of `world_size` ranks takes: every `world_size`-th, from `rank` on.

    All ranks take as many steps: in the last one, ranks for which no batch is left take a copy of the last batch
    that counts for nothing. So no row is dropped, none counts twice, and the global order is the same for any number
    of ranks.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be from 0 to {self.world_size - 1}, but got {self.rank}")

    def steps(self, order: Order) -> int:
        """Batches that each rank takes in an epoch."""
        return -(-order.num_batches // self.world_size)

    def addresses(self, order: Order, epoch: int) -> Iterator[Address]:
        """This rank's batches of one epoch."""
        for step in range(self.steps(order)):
            yield Address(epoch, step * self.world_size + self.rank)

    def after(self, order: Order, address: Address) -> Address:
        """The batch that this rank takes next."""
        number = address.number + self.world_size
        if number < self.steps(order) * self.world_size:
            return Address(address.epoch, number)
        return Address(address.epoch + 1, self.rank)


def read_batches(
    side: Side, order: Order, collation: Collation, share: Share, start: Address
) -> Iterator[tuple[Address, Batch]]:
    """This rank's batches from an address on, without end. Reads from the window that holds the first one."""
    number = min(start.number, order.num_batches - 1)
    windows = Ahead(
        lambda: read_windows(side, order, start.epoch, number // order.batches_a_window), WINDOWS_AHEAD
    )
    wanted = start
    try:
        for window in windows:
            first = window.number * order.batches_a_window
            cuts = order.batches(window.epoch, window.number, window.rows.lengths)
            is_last = window.number == order.num_windows - 1
            mine = list[Address]()
            while wanted.epoch == window.epoch and (wanted.number < first + len(cuts) or is_last):
                mine.append(wanted)
                wanted = share.after(order, wanted)
            own = [cuts[min(address.number - first, len(cuts) - 1)] for address in mine]
            for address, batch in zip(mine, collation.each(window.rows, own), strict=True):
                yield address, batch if address.number < order.num_batches else batch.weightless()
    finally:
        windows.close()


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
        self, side: Side, order: Order, collation: Collation, share: Share, *, pinned: bool = False
    ) -> None:
        self.side, self.order, self.collation, self.share = side, order, collation, share
        self._pinned = pinned
        self._ahead: Ahead[tuple[Address, Batch]] | None = None
        self._next: Address | None = None

    def __len__(self) -> int:
        return self.order.num_rows

    def __getitem__(self, address: Address) -> Batch:
        if self._ahead is None or address != self._next:
            self.close()
            self._ahead = Ahead(lambda: self._batches(address), BATCHES_AHEAD)
        found, batch = next(self._ahead)
        assert found == address, (found, address)
        self._next = self.share.after(self.order, address)
        return batch

    def _batches(self, start: Address) -> Iterator[tuple[Address, Batch]]:
        for address, batch in read_batches(self.side, self.order, self.collation, self.share, start):
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
        return self.share.steps(self.order)


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
