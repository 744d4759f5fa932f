"""`verify --repair` drops what is broken, says what was lost, and touches nothing else."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import teachonce
from schemas import Cache, repair
from schemas.cli.vacuum import print_repaired
from schemas.errors import CacheError, CorruptionError, NoCacheError
from schemas.rows.rows import Rows
from schemas.shards.seal import Totals
from schemas.storage.storage import Storage
from schemas.upkeep import repair as repairing
from schemas.upkeep.repair import repeated
from schemas.versions.commits import read_record, read_version
from schemas.versions.history import LEASES_FOLDER, living_runs, orphans
from schemas.versions.memory import Unscored, write_forgotten, write_unscored
from tests.synthetic import SPECS, add, begin, header_of, random_rows, seal, table_of


@pytest.fixture
def two_nights(new_cache, batches):
    """A cache of six shards of five rows, which came with two runs."""
    add(new_cache, None, batches[:4], run="monday", provenance={"device": "cpu"})
    add(new_cache, read_version(new_cache), batches[4:], run="tuesday", provenance={"device": "gpu"})
    return Cache.open(new_cache.root)


def damage(cache, name, how):
    path = Path(cache.storage.root) / name
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "swapped":
        other = next(shard.name for shard in cache.shards if shard.name != name)
        path.write_bytes((path.parent / other).read_bytes())
    else:
        place = {"group": 100, "footer": len(data) - 40}[how]
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def test_a_file_of_the_memory_that_is_gone_is_missed_until_that_is_told(two_nights, capsys):
    storage, header = two_nights.storage, two_nights.header
    add(storage, read_version(storage), [random_rows(two_nights.spec, 2, seed=7).rows], run="wednesday")
    assert read_record(storage, 2).memory == ()
    write_forgotten(storage, ["somebody"])
    write_unscored(storage, header, [Unscored(b"u" * 16, 0, 1, "not_finite")])
    add(storage, read_version(storage), [random_rows(two_nights.spec, 2, seed=8).rows], run="thursday")
    names = read_record(storage, 3).memory
    assert [name.split("/")[1] for name in names] == ["forgotten", "unscored"]
    for name in names:
        (Path(storage.root) / name).unlink()
    for version in (3, 0):
        with pytest.raises(CorruptionError, match=rf"2 files of the cache's memory are missing.*{names[0]}"):
            Cache.open(storage.root, version).verify()
    found = repair(storage.root)
    assert (found.committed, found.lost, found.lost_memory) == (True, (), names)
    print_repaired(found, as_json=False)
    out = capsys.readouterr().out
    assert all(f"lost: {name}: what it remembered" in out for name in names)
    assert Cache.open(storage.root).verify().examples == len(ids(two_nights)) + 4
    assert repair(storage.root).committed is False


def test_it_holds_a_lease_from_before_it_reads_until_its_end(two_nights, batches, monkeypatch):
    """So `vacuum` leaves alone what it copies, and `forget` waits for its end."""
    storage, living = two_nights.storage, []
    add(storage, read_version(storage), [batches[0].take(np.arange(3))], run="twice")
    for name in ("read_version", "copy_rows"):
        real = getattr(repairing, name)

        def seen(storage, *rest, real=real):
            living.append(living_runs(storage))
            return real(storage, *rest)

        monkeypatch.setattr(repairing, name, seen)
    assert repair(storage.root).repeats == 3
    run = read_record(storage, 3).run
    assert living == [[run], [run]]
    assert storage.names(LEASES_FOLDER) == []
    damage(two_nights, "_teachonce/tokenizer/tokenizer.json", "cut")
    with pytest.raises(CorruptionError, match="--repair mends shards only"):
        repair(storage.root)
    assert storage.names(LEASES_FOLDER) == []
    with pytest.raises(NoCacheError):
        repair(f"{storage.root}/nothing")
    assert not Path(f"{storage.root}/nothing").exists()


def ids(cache):
    return {example for rows in cache.read_all() for example in rows.example_ids}


@pytest.mark.parametrize("how", ["missing", "cut", "swapped", "group", "footer"])
def test_what_is_broken_leaves_and_is_named(two_nights, batches, how):
    broken = sorted([seal(batches[1]).name, seal(batches[5]).name])
    for name in broken:
        damage(two_nights, name, how)
    with pytest.raises(CorruptionError, match="2 of 6 shards are broken"):
        two_nights.verify()
    found = repair(two_nights.storage.root)
    assert (found.committed, found.version, found.shards) == (True, 2, 4)
    assert [lost.name for lost in found.lost] == broken
    came = {lost.name: (lost.version, lost.run, lost.examples) for lost in found.lost}
    assert came[seal(batches[1]).name] == (0, "monday", 5)
    assert came[seal(batches[5]).name] == (1, "tuesday", 5)
    assert all(name in lost.fault for lost, name in zip(found.lost, broken, strict=True))
    tokens = sum(batches[i].num_tokens for i in (1, 5))
    assert (found.lost_examples, found.lost_tokens, found.repeats, found.miscounted) == (10, tokens, 0, False)
    after = Cache.open(two_nights.storage.root)
    assert after.verify().examples == 20
    assert ids(after) == {e for i in (0, 2, 3, 4) for e in batches[i].example_ids}
    assert after.record.provenance == {"device": "gpu"}
    assert after.record.run.startswith("repair-")


def test_with_nothing_broken_nothing_is_committed(two_nights):
    found = repair(two_nights.storage.root)
    assert (found.committed, found.version, found.shards, found.lost) == (False, 1, 6, ())
    assert (found.lost_examples, found.lost_tokens, found.repeats, found.miscounted) == (0, 0, 0, False)
    assert Cache.open(two_nights.storage.root).version == 1
    damage(two_nights, two_nights.shards[0].name, "cut")
    assert repair(two_nights.storage.root).version == 2
    assert repair(two_nights.storage.root).committed is False


def test_what_was_lost_may_come_back_under_its_name(two_nights, batches):
    shard = seal(batches[0])
    damage(two_nights, shard.name, "group")
    repair(two_nights.storage.root)
    storage = two_nights.storage
    assert orphans(storage, read_version(storage)) == [], "what some version removed is never adopted"
    add(storage, read_version(storage), [batches[0]], run="wednesday")
    assert Cache.open(storage.root).verify().examples == 30
    assert Cache.open(storage.root, 1).verify().examples == 30, "the old version is whole again too"
    damage(two_nights, shard.name, "missing")
    assert repair(storage.root).lost[0][2:4] == (3, "wednesday")


def test_every_shard_may_be_lost(two_nights):
    for shard in two_nights.shards:
        damage(two_nights, shard.name, "missing")
    found = repair(two_nights.storage.root)
    assert (found.shards, found.lost_examples) == (0, 30)
    assert Cache.open(two_nights.storage.root).verify().examples == 0


@pytest.mark.parametrize("spec", ["top_p", "temperatures", "sampled", "texts", "classes", "sigmoid"])
def test_repeated_rows_leave_but_for_one(tmp_path, spec):
    rows = random_rows(SPECS[spec], 20).rows
    storage = begin(tmp_path / "cache", SPECS[spec])
    first, overlap, inside = (rows.take(np.arange(*ends)) for ends in ((0, 12), (8, 20), (9, 11)))
    hashed = {"header_hash": header_of(SPECS[spec]).to_json()["hash"]}
    add(storage, None, [first], **hashed)
    add(storage, read_version(storage), [overlap, inside], **hashed)
    with pytest.raises(CorruptionError, match=r"more than once.*--repair"):
        Cache.open(tmp_path / "cache").verify()
    found = repair(tmp_path / "cache")
    assert (found.committed, found.repeats, found.lost, found.lost_tokens) == (True, 6, (), 0)
    after = Cache.open(tmp_path / "cache")
    assert after.verify().examples == 20
    assert ids(after) == set(rows.example_ids)
    read = Rows.concatenate(list(after.read_all()))
    order = np.argsort([rows.example_ids.index(example) for example in read.example_ids])
    assert table_of(read.take(order)).equals(table_of(rows))


def test_repeats_and_broken_shards_at_once(two_nights, batches):
    storage = two_nights.storage
    more = Rows.concatenate([batches[2], batches[3]])
    add(storage, read_version(storage), [more], run="twice")
    damage(two_nights, seal(batches[2]).name, "missing")
    found = repair(storage.root)
    assert (len(found.lost), found.repeats) == (1, 5)
    after = Cache.open(storage.root)
    assert after.verify().examples == 30, "the rows of the missing shard stand in the other one too"


def test_of_each_repeat_the_first_shard_keeps_it():
    a, b = np.arange(64, dtype=np.uint8).reshape(4, 16), np.arange(32, 96, dtype=np.uint8).reshape(4, 16)
    assert [mask.tolist() for mask in repeated([a, b, a[:1]])] == [
        [False] * 4,
        [True, True, False, False],
        [True],
    ]
    assert repeated([]) == []


def test_totals_that_the_log_has_wrong_are_counted_again(new_cache, batches, monkeypatch):
    real = Totals.__add__
    monkeypatch.setattr(Totals, "__add__", lambda a, b: replace(real(a, b), tokens=real(a, b).tokens + 1))
    add(new_cache, None, batches[:1])
    monkeypatch.undo()
    with pytest.raises(CorruptionError, match=r"log's tokens.*--repair"):
        Cache.open(new_cache.root).verify()
    found = repair(new_cache.root)
    assert (found.committed, found.miscounted, found.lost, found.lost_tokens) == (True, True, (), 0)
    assert Cache.open(new_cache.root).verify().tokens == batches[0].num_tokens


def test_a_store_that_refuses_is_no_damage(two_nights, monkeypatch):
    def refuse(self, name, start, end):
        raise CacheError("the cache's storage refuses", where=name, got="503 slow down")

    monkeypatch.setattr(Storage, "read_range", refuse)
    with pytest.raises(CacheError, match="503 slow down") as caught:
        repair(two_nights.storage.root)
    assert not isinstance(caught.value, CorruptionError)
    monkeypatch.undo()
    assert Cache.open(two_nights.storage.root).version == 1


@pytest.mark.parametrize(
    "name", [f"_delta_log/{0:020d}.json", f"_delta_log/{1:020d}.json", "_teachonce/spec.json", None]
)
def test_log_spec_and_tokenizer_cannot_be_repaired(two_nights, name):
    name = name or "_teachonce/tokenizer/tokenizer.json"
    damage(two_nights, two_nights.shards[0].name, "missing")
    path = Path(two_nights.storage.root) / name
    path.write_bytes(path.read_bytes().replace(b'"', b"'"))
    with pytest.raises(CorruptionError, match="--repair mends shards only"):
        repair(two_nights.storage.root)
    assert len(os.listdir(Path(two_nights.storage.root) / "_delta_log")) == 2


def test_the_verb(two_nights, capsys):
    root = two_nights.storage.root
    assert teachonce.main(["verify", root, "--repair"]) == 0
    assert "nothing was committed" in capsys.readouterr().out
    damage(two_nights, two_nights.shards[0].name, "cut")
    assert teachonce.main(["verify", root, "--repair", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["version"], value["lost"][0]["name"]) == (2, two_nights.shards[0].name)
    assert read_record(two_nights.storage, 2).live_shards == 5
    damage(two_nights, two_nights.shards[1].name, "missing")
    assert teachonce.main(["verify", root, "--repair"]) == 0
    out = capsys.readouterr().out
    assert "5 examples of version 0, run monday" in out or "of version 1, run tuesday" in out
    assert "start precompute again" in out
    assert teachonce.main(["verify", root, "--repair", "--version=1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
