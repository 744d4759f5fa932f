"""The order's laws: every row once an epoch, the same twice, another next time, and resume is arithmetic."""

from typing import Any

import numpy as np
import pytest

from schemas.cache import Cache
from schemas.identity import is_held_out
from tests.trainer.stream.test_pool import every
from trainer.stream.order import Order, Side, held_out, read_windows

COUNTS = (5, 0, 16, 1, 9, 16, 3, 0, 12)


def order(**changes: Any) -> Order:
    values: dict[str, Any] = {"batch_size": 4, "row_groups": 2, "seed": 7, "shuffled": True}
    return Order.of(COUNTS, **(values | changes))


def rows_of(one: Order, epoch: int) -> list[list[tuple[int, int]]]:
    """The batches of an epoch as (row group, row in it), without reading anything."""
    found = []
    layout = one.layout(epoch)
    for window in range(one.num_windows):
        rows = [(s.group, i) for s in one.segments(layout, window) for i in range(s.first, s.last)]
        lengths = np.array([3 + (7 * g + 5 * i) % 11 for g, i in rows])
        found += [[rows[i] for i in batch] for batch in one.batches(epoch, window, lengths)]
    return found


EVERY_ROW = {(group, row) for group, count in enumerate(COUNTS) for row in range(count)}


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("row_groups", [1, 2, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 200])
def test_every_row_exactly_once_in_as_many_batches_as_foretold(
    batch_size: int, row_groups: int, shuffled: bool
) -> None:
    one = order(batch_size=batch_size, row_groups=row_groups, shuffled=shuffled)
    for epoch in range(3):
        batches = rows_of(one, epoch)
        rows = [row for batch in batches for row in batch]
        assert len(rows) == len(EVERY_ROW)
        assert set(rows) == EVERY_ROW
        assert len(batches) == one.num_batches
        assert sum(len(batch) != batch_size for batch in batches) <= 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert rows_of(order(), 1) == rows_of(order(), 1)
    assert rows_of(order(), 1) != rows_of(order(), 2)
    assert rows_of(order(seed=7), 0) != rows_of(order(seed=8), 0)
    assert rows_of(order(shuffled=False), 0) == rows_of(order(shuffled=False), 5)


def test_the_order_is_fixed_for_ever() -> None:
    """A checkpoint of one release must resume under the next, whatever numpy does to its generators."""
    assert order().groups(0).tolist() == [5, 4, 8, 3, 2, 0, 6]
    assert order()._permutation(8, 1, 2, 3).tolist() == [0, 7, 1, 4, 6, 5, 2, 3]


def test_a_window_holds_about_as_many_row_groups_as_asked() -> None:
    one = order(row_groups=2)
    assert one.window_rows % 4 == 0
    assert 2 * sum(COUNTS) / 7 <= one.window_rows < 2 * sum(COUNTS) / 7 + 4


def test_batches_hold_rows_of_like_length() -> None:
    one = Order.of((4096,), batch_size=16, row_groups=1, seed=0, shuffled=True)
    lengths = np.random.default_rng(0).integers(1, 1000, 4096)
    batches = one.batches(0, 0, lengths)
    padding = sum(len(b) * lengths[b].max() for b in batches) / lengths.sum() - 1
    assert padding < 0.05
    means = np.array([lengths[b].mean() for b in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_nothing_to_read() -> None:
    empty = Order.of((0, 0), batch_size=4, row_groups=1, seed=0, shuffled=True)
    assert (empty.num_rows, empty.num_batches, empty.num_windows) == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"batch_size": 0}, "2, 0"), ({"row_groups": 0}, "0, 4"), ({"seed": -1}, "-1")],
)
def test_nonsense_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        order(**changes)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.99, 1 - 2**-53])
def test_the_split_is_the_contracts(fraction: float) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (500, 16), dtype=np.uint8)
    hashes[0] = 255
    assert held_out(hashes, fraction).tolist() == [is_held_out(h.tobytes(), fraction) for h in hashes]


def test_both_sides_are_disjoint_and_complete_and_no_document_is_on_both(causal_cache: Cache) -> None:
    sides = [Side(cache=causal_cache, eval_fraction=0.3, is_eval=is_eval) for is_eval in (False, True)]
    ids, documents = [], []
    for side in sides:
        rows = [side.read(group) for group in range(len(causal_cache.row_groups))]
        assert side.counts() == tuple(len(part) for part in rows)
        ids.append({i for part in rows for i in part.example_ids})
        documents.append({d.tobytes() for part in rows for d in part.array("document_hash")})
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]
    assert not documents[0] & documents[1]
    assert len(ids[0] | ids[1]) == causal_cache.totals.examples


def test_windows_hold_the_rows_that_the_order_says(causal_cache: Cache) -> None:
    side = Side(cache=causal_cache, eval_fraction=0.2, is_eval=False)
    one = Order.of(side.counts(), batch_size=8, row_groups=3, seed=0, shuffled=True)
    windows = read_windows(side, one, 0, 0)
    found = [next(windows) for _ in range(one.num_windows + 1)]
    assert [len(w.rows) for w in found[:-2]] == [one.window_rows] * (one.num_windows - 1)
    assert sum(len(w.rows) for w in found[:-1]) == one.num_rows
    assert (found[-1].epoch, found[-1].number) == (1, 0)
    resumed = next(read_windows(side, one, 0, 1))
    assert every(resumed.rows).example_ids == every(found[1].rows).example_ids


def test_a_row_group_is_read_once_an_epoch(causal_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(cache=causal_cache, eval_fraction=0.2, is_eval=False)
    one = Order.of(side.counts(), batch_size=8, row_groups=3, seed=0, shuffled=True)
    read: list[int] = []
    original = Side.whole
    monkeypatch.setattr(Side, "whole", lambda self, group: read.append(group) or original(self, group))
    windows = read_windows(side, one, 0, 0)
    for _ in range(one.num_windows):
        next(windows)
    assert sorted(read) == list(range(len(causal_cache.row_groups)))
    read.clear()
    next(read_windows(side, one, 0, one.num_windows - 1))
    last = one.segments(one.layout(0), one.num_windows - 1)
    assert read == [segment.group for segment in last]


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_of_nonsense_is_refused(causal_cache: Cache, fraction: float) -> None:
    with pytest.raises(ValueError, match=str(fraction)):
        Side(cache=causal_cache, eval_fraction=fraction, is_eval=False)
