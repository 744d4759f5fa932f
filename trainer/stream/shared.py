"""One decode for several students: each run is read once, and each batch made once for all who collate alike.

A `Relay` reads one iterator for several readers. What one of them asks for first is held until all who still want it
have had it. So memory is what lies between the first reader and the last: whoever uses it keeps them close
(`trainer/training/turns.py`). A reader that falls behind, or stands beyond what anybody wants, is served all the same:
the iterator begins again there, which costs a second decode and nothing else.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.stream.order import Order
from trainer.stream.replay import BATCHES_AHEAD, RUNS_AHEAD, Address, Ahead, Share, read_batches
from trainer.stream.runs import Run, read_runs
from trainer.stream.side import Side

K = TypeVar("K", bound=tuple[int, ...])
T = TypeVar("T")


class _Place(NamedTuple):
    """A run's."""

    epoch: int
    run: int


class Relay(Generic[K, T]):
    """Items by rising keys, each made once and given to all readers. From any threads."""

    def __init__(self, start: Callable[[K], Ahead[tuple[K, T]]], following: Callable[[K], K]) -> None:
        """`start` gives the items from a key on, one for each key, without end."""
        self._start, self._following = start, following
        self._changed = threading.Condition()
        self._held: dict[K, T] = {}
        self._wanted: dict[Reader[K, T], K] = {}
        self._source: Ahead[tuple[K, T]] | None = None
        self._coming: K | None = None
        self._is_reading = False

    def reader(self, first: K) -> Reader[K, T]:
        """One that wants all items from a key on; close it."""
        found = Reader(self)
        with self._changed:
            self._wanted[found] = first
        return found

    def take(self, reader: Reader[K, T]) -> T:
        """A reader's next item. An error of the source is raised to each reader that asks; all may ask again."""
        while True:
            with self._changed:
                key = self._wanted[reader]
                while key not in self._held and self._is_reading:
                    self._changed.wait()
                if key in self._held:
                    return self._given(reader, key)
                self._is_reading = True
                first = min(self._wanted.values())
            try:
                self._read(key, first)
            finally:
                with self._changed:
                    self._is_reading = False
                    self._changed.notify_all()

    def leave(self, reader: Reader[K, T]) -> None:
        """Nothing is held for this reader any more."""
        with self._changed:
            self._wanted.pop(reader, None)
            self._forget()
            source = None if self._wanted else self._source
            if source is not None:
                self._source = self._coming = None
        if source is not None:
            source.close()

    def _given(self, reader: Reader[K, T], key: K) -> T:
        item = self._held[key]
        self._wanted[reader] = self._following(key)
        self._forget()
        return item

    def _forget(self) -> None:
        first = min(self._wanted.values(), default=None)
        self._held = {key: item for key, item in self._held.items() if first is not None and key >= first}

    def _read(self, key: K, first: K) -> None:
        """Holds the next item of the source, which begins at what anybody wants first, or again at this key."""
        coming = self._coming
        if self._source is None or coming is None or not first <= coming <= key:
            self._stop()
            self._source, self._coming = self._start(first if coming is None else key), None
        try:
            found, item = next(self._source)
        except BaseException:
            self._stop()
            raise
        with self._changed:
            self._held[found] = item
            self._coming = self._following(found)

    def _stop(self) -> None:
        source, self._source, self._coming = self._source, None, None
        if source is not None:
            source.close()


class Reader(Generic[K, T]):
    """One reader's view of a `Relay`: an iterator."""

    def __init__(self, relay: Relay[K, T]) -> None:
        self._relay = relay

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._relay.take(self)

    def close(self) -> None:
        """Wants nothing more."""
        self._relay.leave(self)


class SharedSide:
    """One side of the caches in one order, decoded once for all replays that have it from here."""

    def __init__(self, sides: Sequence[Side], order: Order, *, epochs: int | None = None) -> None:
        """Nothing is read beyond so many epochs."""
        self._sides, self._order = tuple(sides), order
        self._epochs = epochs
        self._runs: Relay[_Place, Run] = Relay(self._read_runs, self._next_run)
        self._batches: dict[Any, Relay[Address, tuple[Address, Batch]]] = {}

    def source(
        self, collation: Collation, share: Share, *, pinned: bool
    ) -> Callable[[Address], Iterator[tuple[Address, Batch]]]:
        """For `Replay`: where batches come from. Those of one collation and one cut are made once."""
        key = (collation, share, pinned)
        if key not in self._batches:
            self._batches[key] = Relay(
                lambda address: self._read_batches(collation, share, address, pinned=pinned),
                lambda address: share.after(self._order, address),
            )
        relay = self._batches[key]

        def open_at(address: Address) -> _Batches:
            each = share.batches_a_step(self._order)
            run = _Place(address.epoch, address.number // each // self._order.steps_a_run)
            return _Batches(relay.reader(address), self._runs.reader(run), is_copied=not pinned)

        return open_at

    def _next_run(self, place: _Place) -> _Place:
        if place.run + 1 < self._order.num_runs:
            return _Place(place.epoch, place.run + 1)
        return _Place(place.epoch + 1, 0)

    def _left(self, place: tuple[int, int], an_epoch: int) -> int | None:
        """Items from a place on, of so many an epoch; None: without end."""
        epoch, number = place
        return None if self._epochs is None else max(0, (self._epochs - epoch) * an_epoch - number)

    def _read_runs(self, place: _Place) -> Ahead[tuple[_Place, Run]]:
        def runs() -> Iterator[tuple[_Place, Run]]:
            lanes = range(self._order.lanes)
            reading = read_runs(self._sides, self._order, lanes, place.epoch, place.run)
            try:
                for run in itertools.islice(reading, self._left(place, self._order.num_runs)):
                    yield _Place(run.epoch, run.number), run
            finally:
                close = getattr(reading, "close", None)
                if close is not None:
                    close()

        return Ahead(runs, RUNS_AHEAD)

    def _read_batches(
        self, collation: Collation, share: Share, start: Address, *, pinned: bool
    ) -> Ahead[tuple[Address, tuple[Address, Batch]]]:
        left = self._left(start, share.num_batches(self._order))

        def batches() -> Iterator[tuple[Address, tuple[Address, Batch]]]:
            reading = read_batches(
                self._sides,
                self._order,
                collation,
                share,
                start,
                open_runs=lambda epoch, run: self._runs.reader(_Place(epoch, run)),
            )
            try:
                for address, batch in itertools.islice(reading, left):
                    yield address, (address, batch.pin() if pinned else batch)
            finally:
                reading.close()  # type: ignore[attr-defined]

        return Ahead(batches, BATCHES_AHEAD)


class _Batches:
    """One student's batches. Until the first one is there the runs that it is made from are held for it."""

    def __init__(
        self,
        batches: Reader[Address, tuple[Address, Batch]],
        runs: Reader[_Place, Run],
        *,
        is_copied: bool,
    ) -> None:
        self._reader, self._runs, self._is_copied = batches, runs, is_copied

    def __iter__(self) -> Iterator[tuple[Address, Batch]]:
        return self

    def __next__(self) -> tuple[Address, Batch]:
        address, batch = next(self._reader)
        self._runs.close()
        return address, _own_inputs(batch) if self._is_copied else batch

    def close(self) -> None:
        self._reader.close()
        self._runs.close()


def _own_inputs(batch: Batch) -> Batch:
    """The batch with copies of what a model is given, whose code is not ours: it may write there. (On a GPU all that a
    model is given is a copy.)"""
    types, decoder = batch.token_type_ids, batch.decoder_input_ids
    return replace(
        batch,
        input_ids=batch.input_ids.clone(),
        attention_mask=batch.attention_mask.clone(),
        token_type_ids=None if types is None else types.clone(),
        packed=copy.deepcopy(batch.packed),
        decoder_input_ids=None if decoder is None else decoder.clone(),
    )
