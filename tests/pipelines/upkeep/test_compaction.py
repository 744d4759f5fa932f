"""`compact`: the same rows in fewer shards, in id order, in one commit; and never anything in between."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import teachonce
from pipelines import CompactConfig, compact
from pipelines.upkeep import compaction
from schemas import Cache
from schemas.errors import ConflictError, CorruptionError, NoCacheError, UsageError
from schemas.identity import unit_number
from schemas.rows.rows import Rows
from schemas.shards import reader as shard_reader
from schemas.shards.rewrite import units_of
from schemas.versions.commits import base_version, read_version
from schemas.versions.history import LEASES_FOLDER, living_runs, orphans
from tests.pipelines.helpers import documents, read, run, write_jsonl
from tests.synthetic import SPECS, add, begin, causal_spec, make_cache, random_rows, table_of

EXACT = ("examples", "tokens", "positions", "entries", "clamped_codes", "length_histogram")


def nights(path, spec, num_rows=60, num_nights=12):
    """A cache of many small shards, one a night."""
    rows = random_rows(spec, num_rows, seed=3).rows
    order = np.random.default_rng(1).permutation(num_rows)
    storage = begin(path, spec)
    for number, part in enumerate(np.array_split(order, num_nights)):
        base = None if number == 0 else read_version(storage)
        add(
            storage,
            base,
            [rows.take(np.sort(part))],
            run=f"night-{number}",
            provenance={"device": f"{number}"},
        )
    return Cache.open(path), rows


def all_rows(cache):
    return Rows.concatenate(list(cache.read_all()))


@pytest.mark.parametrize("spec", SPECS)
def test_rows_and_totals_stay_and_shards_are_few_and_in_id_order(tmp_path, spec):
    before, rows = nights(tmp_path / "cache", SPECS[spec])
    unit_tokens = before.totals.tokens // 3
    if SPECS[spec].kind.reads_images:  # weighed by their bytes
        unit_tokens = before.size_bytes // 128 // 3
    done = compact(
        CompactConfig(cache=str(tmp_path / "cache"), unit_tokens=unit_tokens, row_group_tokens=100)
    )
    after = Cache.open(tmp_path / "cache")
    assert (done.committed, done.version, after.version) == (True, 12, 12)
    assert (done.shards_before, done.shards, done.examples) == (12, len(after.shards), 60)
    assert (done.size_bytes_before, done.size_bytes) == (before.size_bytes, after.size_bytes)
    assert after.verify().examples == 60
    for name in EXACT:
        assert getattr(after.totals, name) == getattr(before.totals, name)
    assert len(after.row_groups) > len(after.shards) or SPECS[spec].max_length < 10
    ranges = sorted(tuple(after.identities(shard).example_ids) for shard in after.shards)
    joined = list(itertools.chain(*ranges))
    assert joined == sorted(rows.example_ids), "each shard holds a range of ids of its own"
    read = all_rows(after)
    place = {example: number for number, example in enumerate(rows.example_ids)}
    order = np.argsort([place[example] for example in read.example_ids])
    assert table_of(read.take(order)).equals(table_of(rows))
    assert after.record.provenance == {"device": "11"}
    assert after.record.run == done.run
    for number in (0, 5, 11):
        assert Cache.open(tmp_path / "cache", number).verify().examples == 5 * (number + 1)
    assert orphans(after.storage, read_version(after.storage)) == []
    assert after.storage.names(LEASES_FOLDER) == []


def test_entries_of_a_wide_teacher_bound_a_shard_too(tmp_path):
    before, _ = nights(tmp_path / "cache", causal_spec())
    assert compaction.full_shards(before.totals, before.totals.tokens) == 1
    wide = type(before.totals)(tokens=10, entries=64 * 100)
    assert compaction.full_shards(wide, 10) == 10
    assert compaction.full_shards(type(before.totals)(), 10) == 1


def test_it_says_that_it_lives_before_it_reads_a_version(tmp_path, monkeypatch):
    """Else `forget` would not know of one that holds a version with the rows."""
    cache, _ = nights(tmp_path / "cache", causal_spec(), num_nights=1)
    living = []
    monkeypatch.setattr(
        compaction, "base_version", lambda s: living.append(living_runs(s)) or base_version(s)
    )
    assert compact(CompactConfig(cache=cache.storage.root)).committed is False
    assert [len(runs) for runs in living] == [1]
    assert living_runs(cache.storage) == []


def test_what_is_compact_is_left_alone(tmp_path):
    before, _ = nights(tmp_path / "cache", causal_spec())
    config = CompactConfig(cache=str(tmp_path / "cache"))
    assert compact(config).shards == 1
    files = sorted((tmp_path / "cache").rglob("*"))
    done = compact(config)
    assert (done.committed, done.version, done.shards_before, done.shards) == (False, 12, 1, 1)
    assert sorted((tmp_path / "cache").rglob("*")) == files
    fine = CompactConfig(cache=str(tmp_path / "cache"), unit_tokens=before.totals.tokens // 50)
    assert compact(fine).committed is False


def test_full_shards_stay_and_are_not_read(tmp_path, monkeypatch):
    """A night after a week's compaction costs what the night brought."""
    cache, rows = nights(tmp_path / "cache", causal_spec())
    config = CompactConfig(cache=cache.storage.root, unit_tokens=rows.num_tokens * 2 // 3)
    assert compact(config).shards == 2
    full = set(Cache.open(cache.storage.root).shards)
    more = random_rows(causal_spec(), 3, seed=9).rows
    for number in range(3):
        add(cache.storage, read_version(cache.storage), [more.take(np.array([number]))], run=f"more-{number}")
    read, real = set(), shard_reader.fetch_group
    monkeypatch.setattr(shard_reader, "fetch_group", lambda *a: read.add(a[1]) or real(*a))
    done = compact(config)
    monkeypatch.undo()
    assert (done.committed, done.shards_before, done.shards) == (True, 5, 3)
    after = Cache.open(cache.storage.root)
    assert full < set(after.shards)
    assert len(read) == 3
    assert read.isdisjoint(shard.name for shard in full)
    assert after.verify().examples == 63
    assert compact(config).committed is False


def test_only_row_groups_that_overlap_are_read(tmp_path, monkeypatch):
    before, rows = nights(tmp_path / "cache", causal_spec(), num_nights=6)
    metadata = before.footers[before.shards[0].name].metadata
    ids = before.identities(before.shards[0]).example_ids
    group = metadata.row_group(0).num_rows
    for place, part in enumerate((ids[:group], ids[group:])):
        found = units_of(metadata, place, 1000)
        assert {unit_number(example, 1000) for example in part} <= set(found)
        assert (found[0], found[-1]) == (unit_number(min(part), 1000), unit_number(max(part), 1000))
    fetched = []
    real = shard_reader.fetch_group
    monkeypatch.setattr(shard_reader, "fetch_group", lambda *a: fetched.append(a) or real(*a))
    compact(CompactConfig(cache=str(tmp_path / "cache"), unit_tokens=before.totals.tokens // 2 + 1))
    assert len(fetched) <= 6 * 2 + 6, "two row groups a shard, of which at most one spans both halves"
    assert Cache.open(tmp_path / "cache").verify().examples == len(rows)


def test_ids_without_statistics_may_be_anywhere():
    table = pa.table({"example_id": [b"a" * 16]})
    for statistics, ranges in ((True, range(2, 3)), (False, range(7))):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_statistics=statistics)
        assert units_of(pq.read_metadata(pa.BufferReader(sink.getvalue())), 0, 7) == ranges


@pytest.fixture
def others(monkeypatch):
    """Runs that commit just before a compaction does: as many as the test says."""
    waiting, real = [], compaction.commit_change

    def late(storage, header, base, change, **fields):
        if waiting:
            add(storage, read_version(storage), [waiting.pop()], run=f"other-{len(waiting)}")
        return real(storage, header, base, change, **fields)

    monkeypatch.setattr(compaction, "commit_change", late)
    return waiting


def test_a_run_that_commits_meanwhile_is_met_by_itself(tmp_path, others):
    cache, _ = nights(tmp_path / "cache", causal_spec())
    others.append(random_rows(causal_spec(), 4, seed=77).rows)
    done = compact(CompactConfig(cache=cache.storage.root))
    assert (done.committed, done.version, done.shards_before, done.shards) == (True, 13, 13, 1)
    assert Cache.open(cache.storage.root).verify().examples == 64


def test_runs_that_commit_meanwhile_twice_are_told(tmp_path, others):
    cache, _ = nights(tmp_path / "cache", causal_spec())
    others += [random_rows(causal_spec(), 4, seed=seed).rows for seed in (77, 78)]
    with pytest.raises(ConflictError, match="moved on"):
        compact(CompactConfig(cache=cache.storage.root))
    assert Cache.open(cache.storage.root).verify().shards == 14
    assert cache.storage.names(LEASES_FOLDER) == []


def test_a_broken_shard_commits_nothing(tmp_path):
    cache, _ = nights(tmp_path / "cache", causal_spec())
    path = tmp_path / "cache" / cache.shards[3].name
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(CorruptionError, match=cache.shards[3].name):
        compact(CompactConfig(cache=cache.storage.root))
    assert read_version(cache.storage).number == 11


def test_repeated_ids_are_told_and_rows_that_went_missing_too(tmp_path, monkeypatch):
    rows = random_rows(causal_spec(), 12).rows
    storage = begin(tmp_path / "cache", causal_spec())
    add(storage, None, [rows, rows.take(np.arange(4))])
    with pytest.raises(CorruptionError, match=r"more than once.*--repair"):
        compact(CompactConfig(cache=storage.root))
    cache, _ = nights(tmp_path / "other", causal_spec())
    real, skipped = compaction.units_of, []

    def skip_one(metadata, place, num_units):
        skipped.append(place)
        return range(0) if len(skipped) <= 2 else real(metadata, place, num_units)

    monkeypatch.setattr(compaction, "units_of", skip_one)
    with pytest.raises(CorruptionError, match=r"do not hold what the old ones did.*60 examples.*got 55"):
        compact(CompactConfig(cache=cache.storage.root))
    assert read_version(cache.storage).number == 11


def test_a_cache_of_real_nights(tmp_path, teacher):
    """Nights of the real precompute, merged; a run afterwards asks the teacher nothing."""
    for night in range(4):
        files = write_jsonl(tmp_path / f"{night}.jsonl", documents(6, start=6 * night))
        run(files, teacher, tmp_path / "cache", features=("mean:-1",), keep_text=True)
    before = read(tmp_path / "cache")
    done = compact(CompactConfig(cache=str(tmp_path / "cache")))
    assert (done.shards_before, done.shards) == (4, 1)
    after = read(tmp_path / "cache")
    assert after.keys() == before.keys()
    for example, row in before.items():
        for name, value in row.items():
            np.testing.assert_array_equal(after[example][name], value)
    every = [tmp_path / f"{night}.jsonl" for night in range(4)]
    summary = run(every, teacher, tmp_path / "cache", features=("mean:-1",), keep_text=True)
    assert (summary.committed, summary.known_documents) == (False, 24)


def test_the_verb(tmp_path, capsys):
    nights(tmp_path / "cache", causal_spec())
    root = str(tmp_path / "cache")
    assert teachonce.main(["compact", root, "--json", "--", "--direct_num_workers=1"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 1
    assert teachonce.main(["compact", root]) == 0
    assert "nothing to merge: version 12" in capsys.readouterr().out
    assert teachonce.main(["compact", root, "--unit_tokens=0"]) == 2
    assert teachonce.main(["compact", root, "--", "--runner=DaskRunner"]) == 2
    assert teachonce.main(["compact", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="unit_tokens"):
        CompactConfig(cache="c", unit_tokens=0)
    with pytest.raises(NoCacheError):
        compact(CompactConfig(cache=str(tmp_path)))
    storage = begin(tmp_path / "empty", causal_spec())
    with pytest.raises(NoCacheError, match="nothing was committed"):
        compact(CompactConfig(cache=storage.root))
    with pytest.raises(UsageError, match="Beam knows no such option"):
        compact(
            CompactConfig(cache=str(make_cache(tmp_path / "c").storage.root), beam_options=("--nonsense",))
        )
