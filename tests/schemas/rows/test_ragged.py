"""Flat arrays behave as lists of lists do."""

import numpy as np
import pytest

from schemas.rows.ragged import Ragged, offsets_of, spans


def lists(rng, num_rows, nulls=True):
    return [
        None if nulls and rng.random() < 0.3 else rng.integers(0, 99, rng.integers(0, 5))
        for _ in range(num_rows)
    ]


def as_lists(column):
    return [column.row(i).tolist() if column.validity[i] else None for i in range(len(column))]


def plain(rows):
    return [None if row is None else row.tolist() for row in rows]


@pytest.mark.parametrize("nulls", [True, False])
def test_of_and_row(rng, nulls):
    rows = lists(rng, 40, nulls)
    column = Ragged.of(rows, np.int32)
    assert as_lists(column) == plain(rows)
    assert column.lengths.tolist() == [0 if row is None else len(row) for row in rows]
    assert (column.valid is None) == (not nulls)


@pytest.mark.parametrize("nulls", [True, False])
def test_take_is_indexing(rng, nulls):
    rows = lists(rng, 40, nulls)
    column = Ragged.of(rows, np.int32)
    for order in (rng.permutation(40), rng.integers(0, 40, 100), np.zeros(0, np.int64), np.arange(40)):
        assert as_lists(column.take(order)) == [plain(rows)[i] for i in order]


def test_concatenate_is_addition(rng):
    parts = [lists(rng, 7), lists(rng, 0), lists(rng, 5, nulls=False), [None, None]]
    joined = Ragged.concatenate([Ragged.of(part, np.int32) for part in parts])
    assert as_lists(joined) == [row for part in parts for row in plain(part)]
    assert Ragged.concatenate([Ragged.of([np.ones(1)], np.int32)] * 2).valid is None


def test_take_of_concatenate_is_concatenate_of_takes(rng):
    a, b = (Ragged.of(lists(rng, 9), np.float32) for _ in range(2))
    order = rng.permutation(18)
    left = Ragged.concatenate([a, b]).take(order)
    right = Ragged.concatenate([(a if i < 9 else b).take(np.array([i % 9])) for i in order])
    assert as_lists(left) == as_lists(right)


def test_offsets_and_spans():
    offsets = offsets_of(np.array([2, 0, 3]))
    assert offsets.tolist() == [0, 2, 2, 5]
    assert spans(np.array([10, 0, 4]), np.array([2, 0, 3]), offsets).tolist() == [10, 11, 4, 5, 6]


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="offsets must go from 0 to 3"):
        Ragged(values=np.arange(3), offsets=np.array([0, 2]))
    with pytest.raises(ValueError, match="from 1 to 3"):
        Ragged(values=np.arange(3), offsets=np.array([1, 3]))
    with pytest.raises(ValueError, match="row 1 is not"):
        Ragged(values=np.arange(3), offsets=np.array([0, 1, 3]), valid=np.array([True, False]))
