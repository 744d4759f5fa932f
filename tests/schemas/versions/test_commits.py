"""Versions: commits are atomic, idempotent and exclusive, and a damaged log is seen."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

import schemas.versions.commits
import schemas.versions.delta
from schemas import Cache
from schemas.errors import CacheError, ConflictError, NoCacheError, TeachonceError
from schemas.shards.seal import Totals
from schemas.storage.storage import Storage
from schemas.versions.commits import (
    NO_VERSION,
    base_version,
    commit,
    latest_version,
    names_hash,
    read_record,
    record_after,
)
from tests.synthetic import add, causal_spec, header_of, make_cache, seal


def log_of(storage, version=0):
    return Path(storage.root) / "_delta_log" / f"{version:020d}.json"


def test_versions_grow_and_old_ones_stay(new_cache, batches):
    for number, batch in enumerate(batches):
        assert latest_version(new_cache) == number - 1
        assert (
            add(new_cache, base_version(new_cache), [batch], run=f"run-{number}", rejects={"empty": number})
            == number
        )
    for number in range(6):
        cache = Cache.open(new_cache.root, number)
        assert cache.version == number
        ids = [i for rows in cache.read_all() for i in rows.example_ids]
        assert sorted(ids) == sorted(i for batch in batches[: number + 1] for i in batch.example_ids)
        assert cache.totals.examples == len(ids)
        assert cache.totals.tokens == sum(batch.num_tokens for batch in batches[: number + 1])
        assert [(n, record.run) for n, record in cache.versions()] == [
            (n, f"run-{n}") for n in range(number + 1)
        ]
        assert cache.verify().shards == number + 1
    assert Cache.open(new_cache.root).version == 5


def test_a_commit_may_be_done_again(new_cache, batches):
    assert add(new_cache, None, [batches[0]], run="a") == 0
    assert add(new_cache, None, [batches[0]], run="a") == 0
    base = base_version(new_cache)
    assert add(new_cache, base, [batches[1]], run="b") == 1
    assert add(new_cache, base, [batches[1]], run="b") == 1
    assert add(new_cache, base_version(new_cache), [batches[2]], run="c") == 2
    assert add(new_cache, base, [batches[1]], run="b") == 1
    assert latest_version(new_cache) == 2
    assert Cache.open(new_cache.root).verify().shards == 3


def test_of_two_runs_from_one_version_the_second_is_told(new_cache, batches):
    add(new_cache, None, [batches[0]], run="a")
    with pytest.raises(ConflictError, match=r"expected version -1, got version 0\. Start the run again"):
        add(new_cache, None, [batches[1]], run="b")
    base = base_version(new_cache)
    add(new_cache, base, [batches[1]], run="b")
    with pytest.raises(ConflictError, match="expected version 0, got version 1"):
        add(new_cache, base, [batches[2]], run="c")
    assert Cache.open(new_cache.root).verify().shards == 2


@pytest.mark.parametrize("new", [True, False])
def test_commits_at_the_same_time_have_one_winner(new_cache, batches, new):
    if not new:
        add(new_cache, None, [batches[5]], run="first")
    base, barrier, outcomes = base_version(new_cache), threading.Barrier(4), []

    def race(number):
        barrier.wait()
        try:
            outcomes.append(add(new_cache, base, [batches[number]], run=f"run-{number}"))
        except TeachonceError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=race, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == sorted(map(str, [0 if new else 1, *[ConflictError] * 3]))
    assert Cache.open(new_cache.root).verify().shards == (1 if new else 2)


def test_a_commit_is_durable_before_it_returns(new_cache, batches, monkeypatch):
    synced, real = [], os.fsync

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    add(new_cache, None, [batches[0]])
    log = synced.index(str(log_of(new_cache)))
    assert synced[log + 1] == str(log_of(new_cache).parent)
    assert all("_teachonce" in path for path in synced[log + 2 :])


def test_one_run_that_commits_twice_at_the_same_time(new_cache, batches):
    """A worker that was given up for dead, and the one that took over."""
    barrier, versions = threading.Barrier(2), []

    def race():
        barrier.wait()
        versions.append(add(new_cache, None, [batches[0]], run="one"))

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions == [0, 0]
    assert Cache.open(new_cache.root).verify().shards == 1


def test_a_race_that_is_lost_between_look_and_commit(new_cache, batches, monkeypatch):
    """The look at the log sees nothing new, but Delta refuses: the loser finds out whose commit it is."""
    add(new_cache, None, [batches[0]], run="a")
    base = base_version(new_cache)
    add(new_cache, base, [batches[1]], run="b")
    real, looks = schemas.versions.commits._committed_by, []

    def blind_once(*arguments):
        looks.append(1)
        return None if len(looks) == 1 else real(*arguments)

    for run, expected in (("b", 1), ("c", ConflictError)):
        looks.clear()
        monkeypatch.setattr(schemas.versions.commits, "_committed_by", blind_once)
        if expected == 1:
            assert add(new_cache, base, [batches[1]], run=run) == 1
        else:
            with pytest.raises(expected):
                add(new_cache, base, [batches[2]], run=run)
        assert len(looks) == 2


def test_readers_go_by_versions_not_by_listing(new_cache, batches):
    add(new_cache, None, [batches[0]])
    orphan = seal(batches[1])
    new_cache.put(orphan.name, orphan.data)
    cache = Cache.open(new_cache.root)
    assert orphan.name in new_cache.names()
    assert orphan.name not in {shard.name for shard in cache.shards}
    assert cache.verify().examples == len(batches[0])


def test_a_commit_of_nothing_is_a_version(new_cache, batches):
    """A corpus of which every document was rejected, or that is empty."""
    record = record_after(None, [], Totals(), run="r", header_hash=header_of(causal_spec()).to_json()["hash"])
    assert commit(new_cache, causal_spec(), None, [], record) == 0
    cache = Cache.open(new_cache.root)
    assert (cache.shards, cache.row_groups, list(cache.read_all())) == ((), (), [])
    assert cache.verify().examples == 0
    assert add(new_cache, base_version(new_cache), [batches[0]]) == 1
    assert Cache.open(new_cache.root).verify().examples == len(batches[0])


def test_no_commit_no_cache(tmp_path, new_cache):
    (tmp_path / "file").write_text("I am a file")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(NoCacheError, match=r"no cache is there.*precompute"):
            Cache.open(path)
    with pytest.raises(NoCacheError, match="nothing was committed"):
        Cache.open(new_cache.root)
    assert base_version(new_cache) is None
    assert latest_version(new_cache) == NO_VERSION


@pytest.mark.parametrize("version", [-1, 1, 10**6])
def test_a_version_that_is_not_there(cache, version):
    with pytest.raises(NoCacheError, match=f"expected 0 to 0, got {version}"):
        Cache.open(cache.storage.root, version)


def test_floats_of_a_record_keep_their_last_bit(new_cache, batches):
    """Numbers in commit metadata are parsed again on their way to the log, and not exactly."""
    sums = [0.1 + 0.2, 255.60000000000002, 1e-320, 1.7976931348623157e308, 0.1]
    fields = {"provenance": {"sums": sums, "name": '\u00e9 "quoted"'}, "rejects": {"empty": 3}}
    add(new_cache, None, [batches[0]], **fields)
    record = read_record(new_cache, 0)
    assert record.provenance == fields["provenance"]
    assert record.rejects == {"empty": 3}
    assert record.totals == seal(batches[0]).footer.totals


def test_records_of_random_sums_are_read(new_cache, batches, rng):
    for number in range(5):
        base = base_version(new_cache)
        totals = Totals(kept_mass_sum=rng.exponential() * 1e6, entropy_sum_nats=rng.exponential())
        record = record_after(base, [], totals, run=f"{number}", header_hash="")
        commit(new_cache, causal_spec(), base, [], record)
        assert read_record(new_cache, number) == record


def test_live_names_are_a_set():
    assert names_hash(["b", "a"]) == names_hash(["a", "b"])
    assert names_hash(["a", "b"]) != names_hash(["a"])
    assert names_hash([]) == "cae66941d9efbd404e4d88758ea67670"


def test_a_store_that_refuses_is_one_line(own_cache, batches, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Generic error\n \x1b[31m\u21b3\x1b[0m Permission denied (os error 13)\n")

    base = base_version(own_cache.storage)
    monkeypatch.setattr(schemas.versions.commits, "_write", refuse)
    with pytest.raises(
        CacheError, match=r"commit failed.*Generic error Permission denied \(os error 13\)\. Check"
    ):
        add(own_cache.storage, base, [batches[0]], run="b")
    monkeypatch.setattr(schemas.versions.delta, "DeltaTable", refuse)
    with pytest.raises(CacheError, match=r"log cannot be reached.*Permission denied"):
        Cache.open(own_cache.storage.root)


def test_a_commit_that_delta_refuses_for_another_reason(own_cache, batches, monkeypatch):
    def refuse(*_, **__):
        raise DeltaError("no")

    base = base_version(own_cache.storage)
    monkeypatch.setattr(schemas.versions.commits, "_write", refuse)
    with pytest.raises(CacheError, match=r"the commit failed.*got no"):
        add(own_cache.storage, base, [batches[0]], run="b")


@pytest.mark.parametrize("name", ["with space", "\u00fcn\u00ef-\u6c34", "a#b?c", "run:1", "100% sure"])
def test_folders_of_any_name(tmp_path, name):
    assert make_cache(tmp_path / name).verify().shards == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_cache_may_be_moved(own_cache, tmp_path):
    shutil.move(own_cache.storage.root, tmp_path / "elsewhere")
    assert Cache.open(tmp_path / "elsewhere").verify().examples == 24


def test_a_checkpointed_log_opens(new_cache, batches):
    """Delta writes a checkpoint now and then; old entries stay, and so do their versions."""
    add(new_cache, None, [batches[0]], run="first")
    DeltaTable(new_cache.root).create_checkpoint()
    assert list((Path(new_cache.root) / "_delta_log").glob("*.checkpoint.parquet"))
    assert add(new_cache, base_version(new_cache), [batches[1]], run="second") == 1
    assert Cache.open(new_cache.root).verify().shards == 2
    assert Cache.open(new_cache.root, 0).verify().shards == 1


def test_plain_http_is_allowed_only_where_the_user_says_so(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert schemas.versions.delta.storage_options() == {}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    assert schemas.versions.delta.storage_options() == {"allow_http": "true"}
    assert Storage.at("s3://bucket/x").root == "s3://bucket/x"
