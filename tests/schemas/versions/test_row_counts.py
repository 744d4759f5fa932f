"""Row counts: those of the rows, whatever became of the cache; few requests; and no fault of the index is a fault."""

import logging
import math
import os
import shutil
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from schemas import Cache, repair
from schemas.errors import CorruptionError
from schemas.identity import held_out_below
from schemas.shards.group_counts import FOOTERS_HELD
from schemas.shards.held_out import counts_to_bytes
from schemas.shards.seal import Shard, Totals
from schemas.versions.commits import base_version, commit, record_after
from schemas.versions.row_counts import kept_name
from schemas.versions.row_index import INDEX_FOLDER
from tests.golden.make import GOLDEN, ROOT
from tests.schemas.battered import rewrite_one
from tests.schemas.requests import as_tuples, asked, brute_force, check_counts, index_files, of_shards
from tests.synthetic import SPECS, add, begin, causal_spec, header_of, make_cache, random_rows, seal

FRACTIONS = (0.0, 0.3, 1 - 2**-53)


WITHOUT_INDEX = ("v1/", "v1-masked-lm/")
"""Golden caches that were made before there was an index."""


def grown(path, nights, shards=1, rows=6):
    """A cache that so many nights added shards to."""
    every = random_rows(causal_spec(), nights * shards * rows).rows
    storage = begin(path, causal_spec())
    parts = [every.take(part) for part in np.array_split(np.arange(len(every)), nights * shards)]
    for night in range(nights):
        add(
            storage, base_version(storage), parts[night * shards : (night + 1) * shards], run=f"night-{night}"
        )
    return Cache.open(path)


def commit_lie(storage, counts):
    """A shard of two row groups, with counts that somebody tells wrongly."""
    rows = random_rows(causal_spec(), 8).rows
    sealed = seal(rows)
    storage.put(sealed.name, sealed.data)
    shard = Shard(sealed.name, len(sealed.data), 8)
    fields = {"run": "run", "header_hash": header_of(causal_spec()).to_json()["hash"]}
    record = record_after(None, [shard], sealed.footer.totals, **fields)
    commit(storage, causal_spec(), None, [shard], record, counts={shard.name: counts_to_bytes(*counts)})
    return shard.name


@pytest.mark.parametrize("spec", SPECS)
def test_counts_are_those_of_the_rows(tmp_path, spec):
    make_cache(tmp_path / "cache", SPECS[spec], num_rows=200, num_shards=5)
    check_counts(tmp_path / "cache", *FRACTIONS)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_is_none_is_refused(tmp_path, fraction):
    cache = make_cache(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        cache.row_counts(fraction)


def test_shards_leave_come_and_are_rewritten_and_every_version_keeps_its_counts(tmp_path):
    cache = grown(tmp_path / "cache", 5, rows=40)
    rewrite_one(tmp_path / "cache")
    storage = cache.storage
    base = base_version(storage)
    gone = base.shards[:3]
    change = sum((-cache.open_shard(one).footer.totals for one in gone if one in cache.shards), Totals())
    record = record_after(
        base, [], change, gone, run="prune", header_hash=header_of(cache.spec).to_json()["hash"]
    )
    commit(storage, cache.spec, base, [], record, removed=gone)
    add(storage, base_version(storage), [random_rows(causal_spec(), 30, seed=9).rows], run="more")
    for version in range(8):
        check_counts(tmp_path / "cache", 0.4, version=version)


def test_a_repair_has_an_index_of_what_is_left(tmp_path):
    cache = grown(tmp_path / "cache", 4, rows=20)
    (tmp_path / "cache" / cache.shards[1].name).unlink()
    assert len(repair(tmp_path / "cache").lost) == 1
    assert len(check_counts(tmp_path / "cache", 0.5).shards) == 3


def test_requests_do_not_grow_with_shards(tmp_path):
    found = {}
    for shards in (4, 64):
        cache = grown(tmp_path / f"{shards}", 1, shards=shards, rows=2)
        assert len(cache.shards) == shards
        with asked() as requests:
            Cache.open(cache.storage.root).row_counts()
        found[shards] = [ask for ask, _ in requests]
    assert found[4] == found[64]


def test_requests_and_bytes_do_not_grow_with_nights(tmp_path):
    storage = begin(tmp_path / "cache", causal_spec())
    every = random_rows(causal_spec(), 60).rows
    base_requests = None
    for night in range(30):
        rows = every.take(np.arange(2 * night, 2 * night + 2))
        with asked() as commit_requests:
            add(storage, base_version(storage), [rows], run=f"night-{night}")
        assert len(of_shards(commit_requests)) <= 4, "only the new shard is put, and its footer read"
        with asked() as requests:
            cache = Cache.open(storage.root)
            cache.row_counts()
        segments = [name for ask, name in requests if ask == "read" and name.startswith(INDEX_FOLDER)]
        assert len(segments) <= math.log2(night + 1) + 1
        base_requests = base_requests or len(requests) - len(segments)
        assert len(requests) - len(segments) == base_requests
        assert not of_shards(requests)
    assert as_tuples(cache.row_counts()) == brute_force(cache, 0.05)


def damage_index(cache, how, other):
    """Every segment is damaged, in one way."""
    for name in cache.record.index:
        file = Path(cache.storage.root) / name
        data = file.read_bytes()
        if how == "lost":
            file.unlink()
        elif how == "flipped":
            file.write_bytes(data[:30] + bytes([data[30] ^ 4]) + data[31:])
        elif how == "hash":
            file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        elif how == "cut":
            file.write_bytes(data[: len(data) // 2])
        elif how == "empty":
            file.write_bytes(b"")
        elif how == "other":
            shutil.copy(index_files(other.storage.root)[0], file)


@pytest.mark.parametrize("how", ["lost", "flipped", "hash", "cut", "empty", "other"])
def test_without_its_index_rows_are_counted_once_and_the_next_commit_has_one(tmp_path, how, caplog):
    other = make_cache(tmp_path / "other", num_rows=50, seed=8)
    cache = make_cache(tmp_path / "cache", num_rows=60, num_shards=3)
    right = brute_force(cache, 0.05)
    damage_index(cache, how, other)
    found = []
    for _ in range(2):
        with asked() as requests:
            assert as_tuples(Cache.open(tmp_path / "cache").row_counts()) == right
        found.append(len(of_shards(requests)))
    assert found[0] > 0 == found[1], "what was counted is kept"
    assert "passed over" in caplog.text
    add(cache.storage, base_version(cache.storage), [random_rows(causal_spec(), 9, seed=4).rows], run="next")
    for file in index_files(tmp_path / "cache"):
        if file.name.startswith(Cache.open(tmp_path / "cache").record.live_hash):
            file.unlink()
    check_counts(tmp_path / "cache")


def test_the_index_of_another_cache_changes_nothing(tmp_path):
    other = make_cache(tmp_path / "other", num_rows=50, seed=8)
    cache = make_cache(tmp_path / "cache", num_rows=60, num_shards=3)
    right = brute_force(cache, 0.05)
    shutil.rmtree(tmp_path / "cache" / INDEX_FOLDER)
    shutil.copytree(tmp_path / "other" / INDEX_FOLDER, tmp_path / "cache" / INDEX_FOLDER)
    kept = kept_name(other.record.live_hash, held_out_below(0.05))
    assert as_tuples(Cache.open(tmp_path / "cache").row_counts()) == right
    assert not (tmp_path / "cache" / kept).exists()


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "another fraction's", "another cache's"])
def test_kept_counts_that_are_damaged_are_counted_anew(tmp_path, how):
    cache = make_cache(tmp_path / "cache", num_rows=60, num_shards=3)
    other = make_cache(tmp_path / "other", num_rows=60, num_shards=3, seed=2)
    right = brute_force(cache, 0.3)
    kept = tmp_path / "cache" / kept_name(cache.record.live_hash, held_out_below(0.3))
    for one, fraction in ((cache, 0.3), (cache, 0.6), (other, 0.3)):
        one.row_counts(fraction)
    data = kept.read_bytes()
    strange = {
        "flipped": data[:40] + bytes([data[40] ^ 64]) + data[41:],
        "cut": data[:-3],
        "empty": b"",
        "another fraction's": (kept.parent / f"{kept.name[:32]}-{held_out_below(0.6):016x}.zst").read_bytes(),
        "another cache's": next(f for f in index_files(tmp_path / "other") if len(f.name) == 53).read_bytes(),
    }
    kept.write_bytes(strange[how])
    assert as_tuples(Cache.open(tmp_path / "cache").row_counts(0.3)) == right
    if how != "another cache's":
        assert kept.read_bytes() == data, "what was damaged is written anew"
    with asked() as requests:
        assert as_tuples(Cache.open(tmp_path / "cache").row_counts(0.3)) == right
    assert how == "another cache's" or not of_shards(requests)


def test_a_folder_that_takes_no_writes_costs_a_line_of_the_log(tmp_path, monkeypatch, caplog):
    cache = make_cache(tmp_path / "cache", num_rows=40)
    right = brute_force(cache, 0.5)
    real = os.open

    def refuse(path, flags, *arguments, **more):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(30, "Read-only file system", path)
        return real(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    with caplog.at_level(logging.INFO):
        assert as_tuples(Cache.open(tmp_path / "cache").row_counts(0.5)) == right
    assert "not kept" in caplog.text
    monkeypatch.undo()
    assert not [file for file in index_files(tmp_path / "cache") if len(file.name) == 53]


@pytest.mark.parametrize("name", sorted(name for name in GOLDEN if name.startswith(WITHOUT_INDEX)))
def test_a_cache_of_an_earlier_release_is_counted_and_its_next_commit_has_an_index(tmp_path, name):
    path = shutil.copytree(ROOT / name, tmp_path / "cache")
    cache = Cache.open(path)
    assert cache.record.index == ()
    assert cache.open_shard(cache.shards[0]).held_out is None
    for fraction in (0.05, 0.4):
        assert as_tuples(cache.row_counts(fraction)) == brute_force(cache, fraction)
    shutil.rmtree(path / INDEX_FOLDER)
    rows = random_rows(cache.spec, 9, seed=11).rows
    base = base_version(cache.storage)
    sealed = seal(rows)
    cache.storage.put(sealed.name, sealed.data)
    shard = Shard(sealed.name, len(sealed.data), 9)
    record = record_after(
        base, [shard], sealed.footer.totals, run="new", header_hash=cache.header.to_json()["hash"]
    )
    commit(cache.storage, cache.spec, base, [shard], record)
    assert len(check_counts(path).shards) == 3


@pytest.mark.parametrize("counts", [([4, 4], [0, 4]), ([3, 5], [0, 0]), ([8], [0]), ([2, 2, 4], [0, 0, 0])])
def test_a_row_group_that_the_index_counts_otherwise_is_an_error(tmp_path, counts):
    storage = begin(tmp_path / "cache", causal_spec())
    name = commit_lie(storage, counts)
    cache = Cache.open(storage.root)
    told = as_tuples(cache.row_counts())
    assert len(told) == len(counts[0])
    with pytest.raises(CorruptionError, match=rf"not that of the shard.*{name}, row group \d"):
        deque(cache.read_group(shard, place) for shard, place, *_ in told)
    shutil.rmtree(tmp_path / "cache" / INDEX_FOLDER)
    again = Cache.open(storage.root)
    assert as_tuples(again.row_counts()) == brute_force(cache, 0.05)
    assert sum(len(again.read_group(shard, place)) for shard, place, *_ in as_tuples(again.row_counts())) == 8


def test_counts_that_do_not_add_up_to_the_logs_are_no_counts(tmp_path):
    storage = begin(tmp_path / "cache", causal_spec())
    commit_lie(storage, ([4, 5], [0, 0]))
    cache = Cache.open(storage.root)
    assert as_tuples(cache.row_counts()) == brute_force(cache, 0.05)


def test_a_row_group_is_read_alone_with_few_footers_held(tmp_path):
    cache = grown(tmp_path / "cache", 1, shards=FOOTERS_HELD + 6, rows=2)
    counts = cache.row_counts()
    for group, ref in enumerate(Cache.open(cache.storage.root).row_groups):
        rows = cache.read_group(int(counts.shard[group]), int(counts.place[group]))
        assert rows.example_ids == cache.read(ref).example_ids if group < 3 else len(rows)
        cache.__dict__.pop("footers", None)
    assert len(cache._footers) == FOOTERS_HELD
