"""A relay gives every reader every item from its first on, whatever the others do, and makes an item once for all."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from trainer.stream.replay import Ahead
from trainer.stream.shared import Relay

Key = tuple[int, int]


def following(key: Key) -> Key:
    epoch, number = key
    return (epoch, number + 1) if number < 4 else (epoch + 1, 0)


def keys(first: Key) -> Iterator[Key]:
    while True:
        yield first
        first = following(first)


class Made:
    """A relay of texts, and which of them were made."""

    def __init__(self, fail: Callable[[Key], None] = lambda key: None) -> None:
        self.begun: list[Key] = []
        self.closed = 0
        self._fail = fail
        self.relay: Relay[Key, str] = Relay(self._start, following)

    def _start(self, first: Key) -> Ahead[tuple[Key, str]]:
        self.begun.append(first)
        return Ahead(lambda: self._items(first), 3)

    def _items(self, first: Key) -> Iterator[tuple[Key, str]]:
        try:
            for key in keys(first):
                self._fail(key)
                yield key, f"{key}"
        finally:
            self.closed += 1


def wanted(first: Key, number: int) -> list[str]:
    return [f"{key}" for key, _ in zip(keys(first), range(number), strict=False)]


@pytest.mark.parametrize("seed", range(20))
def test_each_has_all_whatever_the_others_do(seed: int) -> None:
    """Readers come, read by chance, and go; one that is first of all falls behind without limit."""
    rng = np.random.default_rng(seed)
    made, readers = Made(), []
    for _ in range(300):
        act = rng.integers(8)
        if act == 0 or not readers:
            first = (int(rng.integers(3)), int(rng.integers(5)))
            readers.append((made.relay.reader(first), keys(first)))
        elif act == 1:
            readers.pop(int(rng.integers(len(readers))))[0].close()
        else:
            reader, expected = readers[int(rng.integers(len(readers)))]
            assert next(reader) == f"{next(expected)}"
    for reader, _ in readers:
        reader.close()
    assert made.closed == len(made.begun)


def test_who_stand_together_have_one_source_and_nothing_is_kept() -> None:
    made = Made()
    readers = [made.relay.reader((0, 2)) for _ in range(4)]
    found: list[list[str]] = [[] for _ in readers]
    for _ in range(40):
        for reader, texts in zip(readers, found, strict=True):
            texts.append(next(reader))
        assert not made.relay._held
    assert found == [wanted((0, 2), 40)] * 4
    assert made.begun == [(0, 2)]
    for reader in readers:
        reader.close()
    assert made.closed == 1


def test_what_is_read_for_the_last_is_kept_for_all_who_want_it() -> None:
    made = Made()
    ahead, behind = made.relay.reader((0, 0)), made.relay.reader((0, 3))
    assert [next(ahead) for _ in range(9)] == wanted((0, 0), 9)
    assert len(made.relay._held) == 6
    behind.close()
    assert not made.relay._held
    assert made.begun == [(0, 0)]
    ahead.close()


def test_what_nobody_wants_is_not_read() -> None:
    made = Made()
    early, late = made.relay.reader((0, 0)), made.relay.reader((100, 0))
    assert next(early) == "(0, 0)"
    early.close()
    assert next(late) == "(100, 0)"
    assert made.begun == [(0, 0), (100, 0)]
    late.close()


def test_an_error_is_told_to_each_who_asks_and_may_pass() -> None:
    broken = [True]

    def fail(key: Key) -> None:
        if key == (0, 2) and broken[0]:
            raise OSError("the store is away")

    made = Made(fail)
    readers = [made.relay.reader((0, 0)) for _ in range(3)]
    for reader in readers:
        assert [next(reader), next(reader)] == wanted((0, 0), 2)
    for reader in readers:
        with pytest.raises(OSError, match="the store is away"):
            next(reader)
    broken[0] = False
    for reader in readers:
        assert [next(reader), next(reader)] == wanted((0, 2), 2)
        reader.close()
    assert made.closed == len(made.begun)


def test_from_many_threads() -> None:
    made, found = Made(), {}
    readers = [made.relay.reader((0, 0)) for _ in range(6)]

    def read(number: int, reader: Any) -> None:
        found[number] = [next(reader) for _ in range(200)]
        reader.close()

    threads = [threading.Thread(target=read, args=each) for each in enumerate(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [wanted((0, 0), 200)] * 6
    assert made.begun == [(0, 0)]
    assert made.closed == 1
