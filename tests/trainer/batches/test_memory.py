"""Memory for batches is written again only when nobody holds on to it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from schemas.cache import Cache
from trainer.batches import memory
from trainer.batches.collate import Collation
from trainer.batches.memory import arrays
from trainer.batches.pool import Pool


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    """What other tests left in this thread is none of these tests' business."""
    memory._own.__dict__.pop("blocks", None)


SHAPES = [(np.int64, 1_000), (np.float32, 333), (np.int16, 7)]


def address(number: int = 1_000) -> int:
    (found,) = arrays([(np.int64, number)])
    return int(found.ctypes.data)


def test_arrays_are_apart_and_as_asked_for() -> None:
    found = arrays(SHAPES)
    assert [(each.dtype, len(each)) for each in found] == SHAPES
    for number, each in enumerate(found):
        each[:] = number
    assert [set(each.tolist()) for each in found] == [{0}, {1}, {2}]
    assert all(each.ctypes.data % 8 == 0 for each in found)


def test_what_nobody_holds_is_used_again() -> None:
    assert len({address() for _ in range(20)}) == 1


def test_what_somebody_holds_is_left_alone() -> None:
    """However it is held: an array, a slice of one, a tensor, a slice of a tensor, an autograd graph."""
    held = []
    for number in range(12):
        (own,) = arrays([(np.float32, 1_000)])
        own[:] = number
        weight = torch.ones((), requires_grad=True)
        ways = (
            own,
            own[3:9],
            own[::2].reshape(2, -1),
            torch.from_numpy(own),
            torch.from_numpy(own)[5:7],
            torch.from_numpy(own)[5:7] * weight,
        )
        held.append((ways[number % len(ways)], weight))
        del own, ways
    for number, (way, weight) in enumerate(held):
        if isinstance(way, torch.Tensor) and way.requires_grad:
            way.sum().backward()
            assert weight.grad == 2 * number
        else:
            assert set(way.tolist() if way.ndim == 1 else way.ravel().tolist()) == {float(number)}


def test_more_than_are_kept_are_whole_all_the_same() -> None:
    held = [arrays([(np.int64, 50)])[0] for _ in range(2 * memory._BLOCKS)]
    for number, each in enumerate(held):
        each[:] = number
    assert [each[0] for each in held] == list(range(2 * memory._BLOCKS))
    assert len(memory._own.blocks) <= memory._BLOCKS


def test_a_larger_one_takes_the_place_of_one_that_is_free() -> None:
    address(10)
    address(200_000)
    assert len(memory._own.blocks) == 1
    assert address(200_000) == address(150_000)


def test_each_thread_has_its_own() -> None:
    mine, theirs = address(), []
    thread = threading.Thread(target=lambda: theirs.append(address()))
    thread.start()
    thread.join()
    assert mine not in theirs


def test_batches_that_are_kept_stay_as_they_were(cache: Cache) -> None:
    """Those of a whole epoch, held in a list, against each made alone."""
    rows = next(iter(cache.read_all()))
    pool, collation = (
        Pool([(rows, np.arange(len(rows)))]),
        Collation(student_vocab=cache.spec.vocab_size, pad_id=0),
    )
    cuts = np.array_split(np.arange(len(rows)), 5)
    kept = [batch for _ in range(4) for batch in collation.each(pool, cuts)]
    for batch, cut in zip(kept, cuts * 4, strict=True):
        alone = collation.batch(rows.take(cut))
        for name in ("ids", "position", "weights", "logprobs", "tail", "negentropy", "gold"):
            assert torch.equal(getattr(batch.targets, name), getattr(alone.targets, name)), name
