"""Memory of row groups and batches is written again only when nobody holds on to it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from schemas.cache import Cache
from schemas.rows import blocks
from schemas.rows.blocks import array, arrays
from trainer.batches.collate import Collation
from trainer.batches.pool import Pool


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests left is none of these tests' business."""
    monkeypatch.setattr(blocks, "_blocks", {})


SHAPES = [(np.int64, 10_000), (np.float32, 3_333), (np.int16, 7)]


def address(number: int = 10_000) -> int:
    return int(array(np.int64, number).ctypes.data)


def kept() -> list[int]:
    """Sizes of the blocks that are kept."""
    return [len(block) for own in blocks._blocks.values() for block in own]


def test_arrays_are_apart_and_as_asked_for() -> None:
    found = arrays(SHAPES)
    assert [(each.dtype, len(each)) for each in found] == SHAPES
    for number, each in enumerate(found):
        each[:] = number
    assert [set(each.tolist()) for each in found] == [{0}, {1}, {2}]
    assert all(each.ctypes.data % 8 == 0 for each in found)


def test_what_nobody_holds_is_used_again() -> None:
    assert len({address() for _ in range(20)}) == 1


@pytest.mark.parametrize("size", [2**15, 2**15 + 1, 40_000, 2**16 - 1, 2**20, 2**20 + 2**18 + 1, 3 * 2**20])
def test_a_block_is_large_enough_and_no_more_than_twice_that(size: int) -> None:
    for own in blocks._sizes(size):
        assert size <= own <= 2 * size
    (found,) = {address(size // 8 + 1), address(size // 8 + 1)}
    assert found


def test_what_somebody_holds_is_left_alone() -> None:
    """However it is held: an array, a slice of one, a tensor, a slice of a tensor, an autograd graph."""
    held = []
    for number in range(12):
        own = array(np.float32, 20_000)
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


def test_what_is_held_is_whole_however_much_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCKS", 8)
    held = [array(np.int64, 5_000) for _ in range(20)]
    for number, each in enumerate(held):
        each[:] = number
    assert [set(each.tolist()) for each in held] == [{number} for number in range(20)]


def test_what_nobody_asks_for_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCKS", 8)
    held = [array(np.int64, 5_000) for _ in range(8)]
    assert len(kept()) == 8
    del held
    array(np.int64, 200_000)
    assert len(kept()) == 1


def test_small_and_huge_ones_are_not_kept() -> None:
    array(np.uint8, 100)
    array(np.uint8, blocks._LARGEST + 1)
    assert kept() == []


def test_threads_are_never_given_the_same() -> None:
    """Each writes its own number to what it is given, and reads it again."""
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            own = array(np.int64, 5_000)
            own[:] = number
            wrong.extend(set(own.tolist()) - {number})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_row_groups_that_are_kept_stay_as_they_were(cache: Cache) -> None:
    """Their memory is other row groups' only when they are gone; as Arrow's own buffers and as arrays."""
    held = [list(cache.read_all()) for _ in range(3)]
    for one in held[1:]:
        for ours, others in zip(held[0], one, strict=True):
            for name in ("kept_ids", "kept_codes", "input_ids"):
                assert np.array_equal(ours.ragged(name).values, others.ragged(name).values), name
                assert not np.shares_memory(ours.ragged(name).values, others.ragged(name).values)


def test_batches_that_are_kept_stay_as_they_were(cache: Cache) -> None:
    """Those of a whole epoch, held in a list, against each made alone."""
    rows = next(iter(cache.read_all()))
    pool, collation = (
        Pool([(rows, np.arange(len(rows)))]),
        Collation(student_vocab=cache.spec.vocab_size, pad_id=0),
    )
    cuts = np.array_split(np.arange(len(rows)), 5)
    held = [batch for _ in range(4) for batch in collation.each(pool, cuts)]
    for batch, cut in zip(held, cuts * 4, strict=True):
        alone = collation.batch(rows.take(cut))
        for name in ("ids", "position", "weights", "logprobs", "tail", "negentropy", "gold"):
            assert torch.equal(getattr(batch.targets, name), getattr(alone.targets, name)), name
