"""The index of row counts as files: few segments, bounded claims, what `vacuum` takes, and a million row groups."""

import hashlib
import json
import math
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from schemas import Cache, vacuum
from schemas.errors import CorruptionError, NoCacheError
from schemas.identity import DEFAULT_EVAL_FRACTION, held_out_below
from schemas.shards.group_counts import Footers
from schemas.shards.held_out import HELD_OUT_KEY, counts_from_bytes, counts_to_bytes, parse_held_out
from schemas.shards.reader import open_footer
from schemas.shards.seal import FOOTER_KEY, Shard, Totals
from schemas.storage.storage import Storage
from schemas.versions import row_index
from schemas.versions.commits import base_version, commit, read_record, record_after
from schemas.versions.delta import entry_name
from schemas.versions.history import leased, strangers
from schemas.versions.row_counts import kept_name
from schemas.versions.row_index import INDEX_FOLDER, MAX_SEGMENTS, index_after, read_segment
from schemas.versions.row_table import RowTable
from tests.golden.make import ROOT
from tests.schemas.battered import rewrite_one
from tests.schemas.requests import as_tuples, asked, brute_force, check_counts, index_files
from tests.schemas.versions.test_row_counts import grown
from tests.synthetic import begin, causal_spec, header_of, make_cache


def test_many_nights_have_few_segments_and_write_each_row_a_few_times(tmp_path):
    """400 nights of one shard, then a night that prunes nine of ten; the index alone, without shards."""
    storage, names, live, told = Storage.at(tmp_path), (), [], {}
    written = 0
    for night in range(400):
        shard = Shard(f"{night:032x}-{night + 1:032x}.parquet", 10, 7 + night)
        live.append(shard)
        told[shard.name] = counts_to_bytes([7, night] if night else [7], [night % 7, 0] if night else [0])
        with asked() as requests:
            names = index_after(storage, causal_spec(), names, live, {shard.name: told[shard.name]})
        written += sum(int(name.split("/")[-1].split("-")[0]) for ask, name in requests if ask == "put")
        assert len(names) <= MAX_SEGMENTS
        assert len(requests) <= MAX_SEGMENTS + 1
    assert written <= 400 * (math.log2(400) + 1)
    table = RowTable.concatenate([read_segment(storage, name) for name in names])
    assert (table.find(live) >= 0).all()
    few = live[::10]
    names = index_after(storage, causal_spec(), names, few, {})
    assert [int(name.split("/")[-1].split("-")[0]) for name in names] == [40]
    (table,) = [read_segment(storage, name) for name in names]
    for shard in few:
        place = int(table.find([shard])[0])
        pairs = np.stack([table.examples.row(place), table.held_out.row(place)], axis=1)
        np.testing.assert_array_equal(pairs, counts_from_bytes(told[shard.name]))


def test_a_commit_that_is_done_again_names_the_same_index(tmp_path):
    cache = grown(tmp_path / "cache", 3)
    base = base_version(cache.storage)
    index = [index_after(cache.storage, cache.spec, base.record.index, base.shards, {}) for _ in range(2)]
    assert index == [base.record.index] * 2


def test_an_earlier_release_finds_no_key_that_it_does_not_know(tmp_path):
    """It refuses a record, a footer or a row group with an unknown key; beside these it looks at none."""
    cache = make_cache(tmp_path / "cache")
    lines = [json.loads(line) for line in (tmp_path / "cache" / entry_name(0)).read_text().splitlines()]
    (info,) = [line["commitInfo"]["teachonce"] for line in lines if "commitInfo" in line]
    golden = [json.loads(line) for line in (ROOT / "v1/top_p" / entry_name(0)).read_text().splitlines()]
    (old,) = [line["commitInfo"]["teachonce"] for line in golden if "commitInfo" in line]
    assert json.loads(info["record"]).keys() == json.loads(old["record"]).keys()
    assert info.keys() == old.keys() | {"index", "index_hash"}
    footers = []
    for one in (cache, Cache.open(ROOT / "v1/top_p")):
        stored = one.open_shard(one.shards[0]).metadata.metadata
        value = json.loads(stored[FOOTER_KEY])
        footers.append((stored.keys() - {HELD_OUT_KEY}, value.keys(), value["row_groups"][0].keys()))
    assert footers[0] == footers[1]


def test_the_footer_that_was_asked_for_last_stays(tmp_path):
    cache, opened = make_cache(tmp_path / "cache", num_shards=4), []

    def open_shard(shard):
        opened.append(cache.shards.index(shard))
        return cache.open_shard(shard)

    footers = Footers(open_shard, most=2)
    for number in (0, 1, 0, 2, 0, 1, 3, 3):
        assert footers.of(cache.shards[number]).footer.unit == cache.shards[number].name[:32]
    assert opened == [0, 1, 2, 1, 3]


def test_a_shard_of_a_version_that_was_given_up_says_so(tmp_path):
    cache = grown(tmp_path / "cache", 2)
    rewrite_one(tmp_path / "cache")
    vacuum(tmp_path / "cache", 0.0)
    old = Cache.open(tmp_path / "cache", 1)
    gone = next(number for number, shard in enumerate(old.shards) if not cache.storage.exists(shard.name))
    for act in (lambda: old.row_counts(0.5), lambda: old.read_group(gone, 0)):
        with pytest.raises(NoCacheError, match="can no longer be read"):
            act()


def test_vacuum_takes_what_no_kept_version_needs(tmp_path):
    """Not while a run lives, nor what is another's; and never a segment that a kept version names."""
    path = tmp_path / "cache"
    cache = grown(path, 6)
    cache.row_counts(0.3)
    Cache.open(path, 2).row_counts(0.3)
    (path / INDEX_FOLDER / "notes.txt").write_text("another's")
    assert strangers(cache.storage) == [f"{INDEX_FOLDER}/notes.txt"]
    before = index_files(path)
    with leased(cache.storage, "20260101T000000Z-00000000"):
        assert vacuum(path, 0.0).index_files == 0
    assert index_files(path) == before
    would = vacuum(path, 0.0, dry_run=True)
    assert index_files(path) == before
    done = vacuum(path, 0.0)
    assert done.index_files == would.index_files > 0
    left = [f"{INDEX_FOLDER}/{file.name}" for file in index_files(path)]
    kept = kept_name(cache.record.live_hash, held_out_below(0.3))
    assert sorted(left) == sorted([*cache.record.index, kept, f"{INDEX_FOLDER}/notes.txt"])
    check_counts(path)
    assert as_tuples(Cache.open(path, 2).row_counts()) == brute_force(Cache.open(path, 2), 0.05)


def test_vacuum_keeps_the_segments_of_every_version_that_it_keeps(tmp_path):
    path = tmp_path / "cache"
    grown(path, 6)
    vacuum(path, 3600.0)
    for version in range(6):
        assert all((path / name).exists() for name in read_record(Storage.at(path), version).index)
        check_counts(path, version=version)


def test_a_names_list_of_the_index_is_believed_as_far_as_it_goes(tmp_path, caplog):
    """Names that lead elsewhere are not opened; a list that was changed is damage of the log."""
    cache = make_cache(tmp_path / "cache", num_rows=30)
    for name in ("_teachonce/spec.json", "../../etc/passwd", f"{INDEX_FOLDER}/1-{'0' * 32}.zst"):
        with asked() as requests:
            assert len(read_segment(cache.storage, name)) == 0
        assert [one for one in requests if one[0] == "read"] == [
            ("read", name) for _ in range(name.startswith(INDEX_FOLDER))
        ]
    log = tmp_path / "cache" / entry_name(0)
    text = log.read_text()
    (name,) = cache.record.index
    log.write_text(text.replace(name, f"{name[:-5]}{'0' if name[-5] != '0' else '1'}.zst"))
    assert log.read_text() != text
    with pytest.raises(CorruptionError, match="log entry"):
        Cache.open(tmp_path / "cache")


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        b"[1]",
        b'{"fraction":0.05,"rows":[1]}',
        b'{"fraction":0.05,"rows":[3,9]}',
        b'{"fraction":0.05,"rows":[-1,0]}',
        b'{"fraction":0.05,"rows":[1.0,0]}',
        b'{"fraction":7,"rows":[1,0]}',
        b'{"fraction":"x","rows":[1,0]}',
    ],
)
def test_a_footer_with_counts_that_cannot_be_is_refused(value):
    with pytest.raises(CorruptionError, match="held-out"):
        parse_held_out(value, [2, 3], "a shard")


def test_a_footers_counts_are_of_the_default_fraction_or_none(tmp_path):
    assert parse_held_out(b'{"fraction":0.05,"rows":[2,0]}', [2, 3], "a shard") == (2, 0)
    assert parse_held_out(b'{"fraction":0.1,"rows":[2,0]}', [2, 3], "a shard") is None
    assert parse_held_out(None, [2, 3], "a shard") is None
    cache = make_cache(tmp_path / "cache", num_rows=300, num_shards=1)
    opened = open_footer(cache.storage, cache.shards[0].name)
    assert opened.held_out == tuple(held for *_, held in brute_force(cache, DEFAULT_EVAL_FRACTION))
    assert sum(opened.held_out) > 0


@pytest.mark.parametrize("examples", [0, 2**40])
def test_a_commit_leaves_out_a_live_shard_that_counts_what_cannot_be(tmp_path, examples, monkeypatch, caplog):
    """Its seal may hold: a stranger made it. A reader that wants its rows is told so."""
    cache = make_cache(tmp_path / "cache", num_shards=2)
    real = row_index.open_footer

    def changed(storage, name, *, size):
        opened = real(storage, name, size=size)
        first, *others = opened.footer.row_groups
        groups = (replace(first, examples=examples), *others)
        return replace(opened, footer=replace(opened.footer, row_groups=groups))

    monkeypatch.setattr(row_index, "open_footer", changed)
    assert index_after(cache.storage, cache.spec, (), cache.shards, {}) == ()
    assert "2 live shards cannot be read" in caplog.text


def test_a_table_that_claims_too_much_is_refused():
    def stored(data, length=None):
        packed = struct.pack("<Q", len(data) if length is None else length)
        packed += pa.compress(data, codec="zstd", asbytes=True)
        return hashlib.blake2b(packed, digest_size=16).digest() + packed

    head = struct.pack("<QQQ", 1, 1, 5)
    whole = head + b"n" * 32 + struct.pack("<iii", 1, 4, 2)
    assert len(RowTable.from_bytes(stored(whole), 5, "here")) == 1
    for bad in (
        stored(whole, 2**60),
        stored(whole, len(whole) + 1),
        stored(whole, len(whole) - 1),
        stored(whole[:-1]),
        stored(whole + b"x"),
        stored(struct.pack("<QQQ", 2**60, 1, 5) + whole[24:]),
        stored(head + b"n" * 32 + struct.pack("<iii", 0, 4, 2)),
        stored(head + b"n" * 32 + struct.pack("<iii", 2, 4, 2)),
        stored(head + b"n" * 32 + struct.pack("<iii", -1, 4, 2)),
        stored(head + b"n" * 32 + struct.pack("<iii", 1, 4, 5)),
        stored(head + b"n" * 32 + struct.pack("<iii", 1, 0, 0)),
        stored(b""),
        b"",
    ):
        with pytest.raises(CorruptionError, match="not what was written"):
            RowTable.from_bytes(bad, 5, "here")
    with pytest.raises(CorruptionError):
        RowTable.from_bytes(stored(whole), 6, "here")


_LARGE = """
import re, sys
from pathlib import Path
from schemas import Cache
counts = Cache.open(sys.argv[1]).row_counts()
print(len(counts.shard), int(counts.to_train.sum() + counts.held_out.sum()), int(counts.held_out.sum()))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_a_million_row_groups_and_a_billion_rows_fit_in_less_than_a_gigabyte(tmp_path):
    """By a process that opens the cache and nothing else; its shards are in the log and the index only. (What it is
    told to be its resource usage would begin with its parent's.)"""
    rng = np.random.default_rng(0)
    rows = rng.integers(900, 1_101, (31_250, 16))
    rows = np.concatenate([rows, 2_000 - rows], axis=1)
    held = rng.binomial(rows, 0.05)
    storage = begin(tmp_path / "cache", causal_spec())
    names = [f"{rng.bytes(16).hex()}-{rng.bytes(16).hex()}.parquet" for _ in rows]
    shards = [Shard(name, 10**8, 32_000) for name in names]
    fields = {"run": "run", "header_hash": header_of(causal_spec()).to_json()["hash"]}
    record = record_after(None, shards, Totals(), **fields)
    told = {
        name: counts_to_bytes(*pair) for name, *pair in zip(names, rows.tolist(), held.tolist(), strict=True)
    }
    commit(storage, causal_spec(), None, shards, record, counts=told)
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, storage.root], capture_output=True, text=True, check=True
    )
    counts, peak = done.stdout.splitlines()
    assert counts == f"1000000 1000000000 {held.sum()}"
    assert int(peak) < 2**20, "KiB"
