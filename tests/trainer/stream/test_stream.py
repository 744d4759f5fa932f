"""The order's laws: every row once an epoch, the same steps for any ranks, and resume is arithmetic."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from schemas.cache import Cache
from schemas.identity import held_out, is_held_out
from trainer.stream.apportioned import apportioned
from trainer.stream.order import Order, by_length
from trainer.stream.runs import read_runs
from trainer.stream.side import Side

COUNTS = (5, 0, 16, 1, 9, 16, 3, 0, 12)
OTHER = (7, 2, 0, 11)
Row = tuple[int, int, int]


def order(*counts: tuple[int, ...], **changes: Any) -> Order:
    values: dict[str, Any] = {"batch_size": 4, "row_groups": 2, "seed": 7, "lanes": 4}
    arrays = tuple(np.array(one, np.int64) for one in counts or (COUNTS,))
    return Order(counts=arrays, **(values | changes))


def length(row: Row) -> int:
    return 3 + (7 * row[1] + 5 * row[2]) % 11


def steps_of(one: Order, epoch: int, lanes: range | None = None) -> list[list[Row]]:
    """The rows of each step of an epoch as (cache, row group, row in it), without reading anything."""
    found = []
    for run in range(one.num_runs):
        shares = []
        for lane in lanes or range(one.lanes):
            pieces = one.pieces(epoch, run, lane)
            rows = [(piece.cache, piece.group, row) for piece in pieces for row in piece.rows.tolist()]
            dealt = one.deal(epoch, run, [(lane, len(rows))], np.array([*map(length, rows)], np.int64))
            shares.append([[rows[i] for i in step] for step in dealt])
        found += [[*itertools.chain(*step)] for step in zip(*shares, strict=True)]
    return found


def every_row(*counts: tuple[int, ...]) -> Counter[Row]:
    return Counter(
        (cache, group, row)
        for cache, one in enumerate(counts or (COUNTS,))
        for group, count in enumerate(one)
        for row in range(count)
    )


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("row_groups", [1, 2, 8, 100])
@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 200])
def test_every_row_once_an_epoch_in_full_steps(
    batch_size: int, lanes: int, row_groups: int, shuffled: bool
) -> None:
    one = order(batch_size=batch_size, row_groups=row_groups, shuffled=shuffled, lanes=lanes)
    for epoch in range(3):
        steps = steps_of(one, epoch)
        assert Counter(row for step in steps for row in step) == every_row()
        assert [len(step) for step in steps] == [len(one.step_rows(n)) for n in range(one.num_steps)]
        assert all(len(step) == batch_size for step in steps[:-1])


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_a_step_holds_the_same_rows_for_every_number_of_ranks(
    ranks: int, weights: tuple[float, ...] | None
) -> None:
    one = order(COUNTS, OTHER, lanes=8, batch_size=16, weights=weights)
    for epoch in range(2):
        apart = [steps_of(one, epoch, range(rank, 8, ranks)) for rank in range(ranks)]
        together = [Counter(itertools.chain(*step)) for step in zip(*apart, strict=True)]
        assert together == [Counter(step) for step in steps_of(one, epoch)]
        assert {len(step) for rank in apart for step in rank[:-1]} == {16 // ranks}


def test_a_row_group_is_read_by_one_rank_but_at_the_cuts() -> None:
    one = order(tuple([10] * 100), lanes=8, batch_size=8)
    readers: dict[int, set[int]] = {}
    for lane in range(8):
        for run in range(one.num_runs):
            for piece in one.pieces(0, run, lane):
                readers.setdefault(piece.group, set()).add(lane)
    assert sum(len(lanes) > 1 for lanes in readers.values()) <= 7


def test_two_lanes_come_to_the_row_group_that_they_share_at_the_same_time() -> None:
    """So a rank that owns both reads it once: what a run reads anew, over an epoch, is every row group once."""
    one = order(tuple([10] * 100), lanes=8, batch_size=8, row_groups=8)
    before: set[int] = set()
    read = 0
    for run in range(one.num_runs):
        now = {piece.group for lane in range(8) for piece in one.pieces(0, run, lane)}
        read += len(now - before)
        before = now
    assert read == 100


@pytest.mark.parametrize("counts", [(COUNTS, OTHER), (OTHER, COUNTS, (1,), (40,))])
def test_without_weights_every_row_of_each_cache_comes_once_an_epoch(
    counts: tuple[tuple[int, ...], ...],
) -> None:
    one = order(*counts, lanes=3)
    for epoch in range(3):
        rows = Counter(row for step in steps_of(one, epoch) for row in step)
        assert rows == every_row(*counts)


def test_with_weights_each_cache_gives_its_share_and_every_row_once_a_pass() -> None:
    big, small = (50,) * 10, (10,) * 6
    one = order(big, small, lanes=4, batch_size=8, weights=(1.0, 1.0))
    seen: Counter[Row] = Counter()
    for epoch in range(6):
        steps = steps_of(one, epoch)
        rows = [row for step in steps for row in step]
        assert len(rows) == 560
        assert abs(sum(cache for cache, *_ in rows) - 280) <= 4
        runs = [steps[first : first + one.steps_a_run] for first in range(0, len(steps), one.steps_a_run)]
        for run in runs:
            taken = [row[0] for step in run for row in step]
            assert abs(sum(taken) - len(taken) / 2) <= 4
        seen.update(rows)
    passes = [count for (cache, *_), count in seen.items() if cache]
    assert len(passes) == 60
    assert max(passes) - min(passes) <= 1
    assert {count for (cache, *_), count in seen.items() if not cache} <= {3, 4}


@pytest.mark.parametrize("seed", range(20))
def test_shares_never_fall_and_are_within_a_row_of_their_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 20, rng.integers(2, 6)).tolist()
    weights[0] += 1
    exact = order(*((w,) for w in weights), lanes=1)._lane_weights[0]
    total, before = sum(weights), [0] * len(weights)
    for number in range(3 * total + 1):
        found = apportioned(exact, number)
        assert sum(found) == number
        assert all(a <= b for a, b in zip(before, found, strict=True))
        assert all(
            abs(f - number * w / total) <= len(weights) / 2 for f, w in zip(found, weights, strict=True)
        )
        before = found
    assert before == [3 * weight for weight in weights]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert steps_of(order(), 1) == steps_of(order(), 1)
    assert steps_of(order(), 1) != steps_of(order(), 2)
    assert steps_of(order(seed=7), 0) != steps_of(order(seed=8), 0)
    assert steps_of(order(shuffled=False), 0) == steps_of(order(shuffled=False), 5)


def test_the_order_is_fixed_for_ever() -> None:
    """A checkpoint of one release must resume under the next, whatever numpy does to its generators."""
    one = order(COUNTS, OTHER)
    assert one._permutation(8, 1, 2, 3).tolist() == [0, 7, 1, 4, 6, 5, 2, 3]
    assert steps_of(one, 1)[3] == [(1, 0, 0), (0, 5, 4), (0, 5, 15), (0, 8, 0)]


def test_neighbours_and_row_groups_are_mixed() -> None:
    one = order(tuple([100] * 64), lanes=8, batch_size=16, row_groups=8)
    steps = steps_of(one, 0)
    groups = [len({row[1] for row in step}) for step in steps]
    assert np.mean(groups) > 6
    places = [100 * row[1] + row[2] for step in steps for row in step]
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.1


def test_steps_hold_rows_of_like_length_and_their_order_is_mixed() -> None:
    one = order((4096,), batch_size=16, row_groups=1, lanes=8)
    lengths = np.random.default_rng(0).integers(1, 1000, 4096)
    padded, total, means = 0, 0, []
    for run in range(one.num_runs):
        shares = []
        for lane in range(8):
            rows = np.concatenate([piece.rows for piece in one.pieces(0, run, lane)])
            shares.append([rows[step] for step in one.deal(0, run, [(lane, len(rows))], lengths[rows])])
        for step in zip(*shares, strict=True):
            found = lengths[np.concatenate(step)]
            padded, total = padded + len(found) * found.max(), total + found.sum()
            means.append(found.mean())
    assert padded / total - 1 < 0.2
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_by_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 1000)
    batches = by_length(lengths, 16)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert sum(len(b) * lengths[b].max() for b in batches) / lengths.sum() - 1 < 0.05


def test_a_million_row_groups_are_planned_in_little_memory() -> None:
    one = order(tuple(np.full(10**6, 1000)), lanes=64, batch_size=4096, row_groups=64)
    assert one.num_rows == 10**9
    for lane in (0, 63):
        assert sum(len(piece.rows) for piece in one.pieces(3, one.num_runs - 1, lane)) > 0
    assert len(one._layouts) <= 2


def test_nothing_to_read() -> None:
    empty = order((0, 0))
    assert (empty.num_rows, empty.num_steps, empty.num_runs) == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"row_groups": 0}, "row_groups"),
        ({"lanes": 0}, "lanes"),
        ({"seed": -1}, "-1"),
        ({"weights": (1.0, 2.0)}, "weights"),
        ({"weights": (0.0,)}, "weights"),
        ({"weights": (float("inf"),)}, "weights"),
    ],
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
        assert side.counts().tolist() == [len(part) for part in rows]
        ids.append({i for part in rows for i in part.example_ids})
        documents.append({d.tobytes() for part in rows for d in part.array("document_hash")})
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]
    assert not documents[0] & documents[1]
    assert len(ids[0] | ids[1]) == causal_cache.totals.examples


def sides_of(cache: Cache) -> tuple[Side, Order]:
    side = Side(cache=cache, eval_fraction=0.2, is_eval=False)
    return side, Order(counts=(side.counts(),), batch_size=8, row_groups=3, lanes=2)


def test_runs_hold_the_rows_that_the_order_says(causal_cache: Cache) -> None:
    side, one = sides_of(causal_cache)
    runs = read_runs([side], one, range(2), 0, 0)
    found = [next(runs) for _ in range(one.num_runs + 1)]
    assert [(run.epoch, run.number) for run in found][-2:] == [(0, one.num_runs - 1), (1, 0)]
    for run in found[:-1]:
        pieces = [piece for lane in range(2) for piece in one.pieces(0, run.number, lane)]
        wanted = [i for p in pieces for i in side.read(p.group).take(p.rows).example_ids]
        rows = run.rows.take(np.arange(len(run.rows)))
        assert rows.example_ids == wanted
        assert sorted(np.concatenate(run.steps).tolist()) == list(range(len(rows)))
        for step in run.steps:
            assert (np.diff(rows.take(step).input_ids.lengths) >= 0).all()
    resumed = next(read_runs([side], one, range(2), 0, 1))
    rows = found[1].rows.take(np.arange(len(found[1].rows)))
    assert resumed.rows.take(np.arange(len(rows))).example_ids == rows.example_ids
    assert [step.tolist() for step in resumed.steps] == [step.tolist() for step in found[1].steps]


def test_a_row_group_is_read_once_an_epoch(causal_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    side, one = sides_of(causal_cache)
    read: list[int] = []
    original = Side.whole
    monkeypatch.setattr(Side, "whole", lambda self, group: read.append(group) or original(self, group))
    runs = read_runs([side], one, range(2), 0, 0)
    for _ in range(one.num_runs):
        next(runs)
    assert sorted(read) == list(range(len(causal_cache.row_groups)))
    read.clear()
    next(read_runs([side], one, range(2), 0, one.num_runs - 1))
    last = {piece.group for lane in range(2) for piece in one.pieces(0, one.num_runs - 1, lane)}
    assert sorted(read) == sorted(last)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_of_nonsense_is_refused(causal_cache: Cache, fraction: float) -> None:
    with pytest.raises(ValueError, match=str(fraction)):
        Side(cache=causal_cache, eval_fraction=fraction, is_eval=False)
