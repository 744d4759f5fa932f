"""Ids survive their ranks and gaps whatever the vocabulary, and a list that is none is refused."""

import json

import numpy as np
import pytest

from schemas import Cache
from schemas.errors import CorruptionError
from schemas.rows.ragged import Ragged
from schemas.rows.ranks import MAX_LISTED, Ranking, from_gaps, parse_listed, ranked, to_gaps, unranked
from schemas.rows.rows import Rows
from tests.schemas.test_verify import committed, foreign_shard
from tests.synthetic import SPECS, random_rows


def some_ids(rng, vocab_size, counts):
    """Of each position so many different ids, in any order; low ones are likelier."""
    wide = (rng.random((len(counts), 4 * counts.max() + 8)) ** 3 * vocab_size).astype(np.int32)
    rows = [rng.permutation(np.unique(row))[:count] for row, count in zip(wide, counts, strict=True)]
    return np.concatenate(rows), np.array([len(row) for row in rows], np.int32)


def split(values, counts):
    return [part.tolist() for part in np.split(values, np.cumsum(counts)[:-1])]


@pytest.mark.parametrize("vocab_size", [1, 2, 50, 2**17 + 9, 2**20])
def test_a_ranking_is_a_permutation(rng, vocab_size):
    ids, _ = some_ids(rng, vocab_size, rng.integers(0, 30, 200))
    ranking = Ranking.of([ids], vocab_size)
    every = np.arange(vocab_size)
    assert (np.sort(ranking.id_by_rank) == every).all()
    assert (ranking.id_by_rank[ranking.rank_by_id] == every).all()
    assert (ranking.rank_by_id[ranking.id_by_rank] == every).all()


def test_frequent_ids_come_first_and_of_equally_frequent_ones_the_lower():
    ranking = Ranking.of([np.array([7, 7, 3], np.int32), np.array([3, 9, 0], np.int32)], 12)
    assert ranking.listed.tolist() == [3, 7, 0, 9]
    assert ranking.id_by_rank.tolist() == [3, 7, 0, 9, 1, 2, 4, 5, 6, 8, 10, 11]
    assert json.loads(ranking.to_bytes()) == [3, 7, 0, 9]


def test_no_more_than_so_many_ids_are_listed(rng):
    ids = np.concatenate([np.arange(40_000), rng.integers(0, 40_000, 10_000)]).astype(np.int32)
    ranking = Ranking.of([ids], 2**18)
    assert len(ranking.listed) == MAX_LISTED
    counts = np.bincount(ids)
    assert counts[ranking.listed].min() >= np.delete(counts, ranking.listed).max()
    assert (ranking.id_by_rank[ranking.rank_by_id[ids]] == ids).all()


def test_a_shard_without_any_id_lists_none():
    ranking = Ranking.of([np.zeros(0, np.int32)], 6)
    assert ranking.to_bytes() == b"[]"
    assert ranking.id_by_rank.tolist() == list(range(6))


@pytest.mark.parametrize("vocab_size", [40, 49_152, 2**20, 2**24])
def test_gaps_keep_every_set_of_ids(rng, vocab_size):
    ids, counts = some_ids(rng, vocab_size, np.minimum(rng.integers(0, 40, 300), vocab_size // 4))
    counts = np.concatenate([[0], counts, [0, 0]]).astype(np.int32)
    ranking = Ranking.of([ids], vocab_size)
    gaps, order = to_gaps(ids, counts, ranking)
    ranks = from_gaps(gaps, counts)
    assert (ranking.id_by_rank[ranks] == ids[order]).all()
    assert split(np.sort(order), counts) == split(np.arange(len(ids)), counts)  # none leaves its position
    for one, other in zip(split(ranks, counts), split(ids, counts), strict=True):
        assert one == sorted(one)
        assert sorted(ranking.id_by_rank[one]) == sorted(other)


def test_the_worked_example_of_gaps():
    ranking = Ranking(listed=np.array([5, 2], np.int32), vocab_size=8)
    gaps, order = to_gaps(np.array([7, 5, 2, 0, 5], np.int32), np.array([3, 0, 2]), ranking)
    assert gaps.tolist() == [0, 1, 6, 0, 2]
    assert order.tolist() == [1, 2, 0, 4, 3]


def test_running_sums_of_gaps_may_wrap_around():
    counts = np.full(300, 2, np.int32)
    gaps = np.tile(np.array([2**23, 2**23 - 1], np.int32), 300)
    assert gaps.sum(dtype=np.int64) > 2**31
    assert from_gaps(gaps, counts).reshape(-1, 2).tolist() == [[2**23, 2**24 - 1]] * 300


def test_nothing_at_all():
    none = np.zeros(0, np.int32)
    ranking = Ranking.of([none], 9)
    gaps, order = to_gaps(none, none, ranking)
    assert (len(gaps), len(order), len(from_gaps(gaps, none))) == (0, 0, 0)


@pytest.mark.parametrize("name", ["top_p", "threshold", "temperatures", "sampled"])
def test_columns_go_to_disk_and_back(name):
    rows = random_rows(SPECS[name], 20).rows
    ids = [rows.ragged(n).values for n in ("kept_ids", "sampled_ids") if n in rows.data]
    ranking = Ranking.of(ids, rows.spec.vocab_size)
    stored = {**rows.data, **ranked(rows.data, ranking)}
    back = unranked(stored, ranking, "here")
    assert (back["kept_ids"].values == rows.kept_ids).all()
    if rows.spec.is_sampling:
        beside = {n: stored[n].values for n in ("sampled_codes", "sampled_counts") if n in stored}
        for n, values in beside.items():
            pairs = zip(back["sampled_ids"].values, values, strict=True)
            assert sorted(pairs) == sorted(
                zip(rows.ragged("sampled_ids").values, rows.ragged(n).values, strict=True)
            )


BAD_LISTS = [
    b"",
    b"{}",
    b"7",
    b"null",
    b"[1, 1]",
    b"[-1]",
    b"[[1]]",
    b"[1.5]",
    b'["1"]',
    b"[true]",
    b"[null]",
]
BAD_LISTS += [b"[2147483648]", b"[4294967297]", b"[1e400]", b"[99999999999999999999]", b"[1", b"\xff"]


@pytest.mark.parametrize("data", BAD_LISTS)
def test_what_is_no_list_of_ids_is_refused(data):
    with pytest.raises(CorruptionError, match="here"):
        parse_listed(data, "here")


@pytest.mark.parametrize("data", [b"[50]", b"[3, 2147483647]", b"[1, 1]", b"{}"])
def test_a_shard_with_a_list_that_fits_no_vocabulary_is_refused(tmp_path, data):
    rows = random_rows(SPECS["top_p"], 6).rows
    cache = committed(tmp_path, rows, *foreign_shard(rows, listed=data))
    for act in (lambda: list(cache.read_all()), lambda: Cache.open(tmp_path).verify()):
        with pytest.raises(CorruptionError, match=r"list(s no|.* of) ids"):
            act()


def stored_draws(values, counts):
    lists = Ragged(values=np.array(values, np.int32), offsets=np.array([0, len(values)]))
    number = Ragged(values=np.array(counts, np.int32), offsets=np.array([0, len(counts)]))
    none = Ragged(values=np.zeros(0, np.int32), offsets=np.array([0, 0]))
    return {"kept_ranks": none, "sampled_gaps": lists, "num_sampled": number}


@pytest.mark.parametrize(
    ("gaps", "counts"),
    [([1, 0], [2]), ([1, 3, -2], [3]), ([-1, 2], [2]), ([5, 5], [2]), ([1, 1], [1]), ([1], [2])],
)
def test_gaps_that_no_writer_makes_are_refused(gaps, counts):
    """Repeats, steps back, ranks below 0 and from V, and counts that do not add up."""
    with pytest.raises(CorruptionError, match=r"sampled_gaps.*here"):
        unranked(stored_draws(gaps, counts), Ranking(listed=np.zeros(0, np.int32), vocab_size=10), "here")


@pytest.mark.parametrize("rank", [-1, 10])
def test_ranks_out_of_range_are_refused(rank):
    ranks = Ragged(values=np.array([3, rank], np.int32), offsets=np.array([0, 2]))
    with pytest.raises(CorruptionError, match=r"kept_ranks.*here"):
        unranked({"kept_ranks": ranks}, Ranking(listed=np.zeros(0, np.int32), vocab_size=10), "here")


def test_rows_of_many_shards_share_no_ranking(tmp_path):
    """Each shard has its own list; what is read from them is ids, that may be put together."""
    rows = random_rows(SPECS["threshold"], 12).rows
    parts = [rows.take(np.arange(6)), rows.take(np.arange(6, 12))]
    lists = [Ranking.of([p.kept_ids, p.ragged("sampled_ids").values], 50).listed.tolist() for p in parts]
    assert lists[0] != lists[1]
    caches = [committed(tmp_path / str(i), p, *foreign_shard(p)) for i, p in enumerate(parts)]
    read = Rows.concatenate([part for cache in caches for part in cache.read_all()])
    assert (read.kept_ids == rows.kept_ids).all()
