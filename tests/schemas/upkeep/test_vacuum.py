"""`vacuum` deletes what no kept version needs, and never anything that one does."""

import json
import random
import time
from pathlib import Path

import pytest

import teachonce
from schemas import Cache, vacuum
from schemas.cli.vacuum import ranges
from schemas.errors import CorruptionError, NoCacheError, UsageError
from schemas.versions import history
from schemas.versions.commits import read_version
from schemas.versions.history import LEASE_SECONDS, end_lease, take_lease
from tests.schemas.histories import DAY, History


@pytest.fixture
def past(tmp_path, monkeypatch):
    """A history that begins thirty days ago: three versions, ten days apart, of which the second drops a shard."""
    made = History(tmp_path / "cache", monkeypatch, time.time() - 30 * DAY)
    first, second = made.put(), made.put()
    made.commit([first, second])
    made.clock.now += 10 * DAY
    made.commit([made.put()], [first])
    made.clock.now += 10 * DAY
    made.commit([made.put()])
    return made


def names(made):
    return {path.name for path in Path(made.storage.root).iterdir() if path.is_file()}


def live(made, number):
    return {shard.name for shard in read_version(made.storage, number).shards}


def test_what_was_current_within_the_time_is_kept(past):
    before = names(past)
    for days, oldest in ((25, 0), (15, 1), (5, 2), (0, 2)):
        found = vacuum(past.storage.root, days * DAY, dry_run=True)
        assert (found.oldest_kept, found.version, found.dry_run) == (oldest, 2, True)
        assert found.old_shards == (1 if oldest else 0)
    assert names(past) == before


def test_an_old_version_goes_and_says_so_when_it_is_opened(past):
    shard = (live(past, 0) - live(past, 1)).pop()
    size = past.storage.size(shard)
    old = Cache.open(past.storage.root, 0)
    assert old.verify().shards == 2
    found = vacuum(past.storage.root, 15 * DAY)
    assert (found.old_shards, found.bytes, found.unreadable_versions) == (1, size, (0,))
    assert shard not in names(past)
    assert Cache.open(past.storage.root, 1).verify().shards == 2
    again = Cache.open(past.storage.root, 0)
    for read in (again.verify, lambda: again.footers, lambda: list(again.read_all())):
        with pytest.raises(
            NoCacheError,
            match=r"version 0 can no longer be read: shards of it were deleted.*newest version, 2",
        ):
            read()
    assert vacuum(past.storage.root, 15 * DAY).old_shards == 0


def test_footers_that_were_read_before_do_not_hide_that_a_version_went(past):
    old = Cache.open(past.storage.root, 0)
    assert len(old.row_groups) == 2
    vacuum(past.storage.root, 0.0)
    with pytest.raises(NoCacheError, match="version 0 can no longer be read"):
        list(old.read_all())


def test_a_shard_that_is_missing_though_it_is_live_is_damage(past):
    lost = (live(past, 0) & live(past, 2)).pop()
    past.storage.delete([lost])
    for number in (0, 1, 2):
        with pytest.raises(CorruptionError, match="is missing"):
            Cache.open(past.storage.root, number).verify()


def test_orphans_and_parts_are_left_alone_while_a_run_lives(past):
    orphan = past.put().name
    part = Path(past.storage.root) / "_teachonce" / "rejects" / "r.jsonl.part-12345678"
    part.parent.mkdir(parents=True)
    for file in (part, Path(past.storage.root) / f"{orphan}.part-9abcdef0"):
        file.write_bytes(b"half")
        past.touch(str(file))
    take_lease(past.storage, "alive")
    dead = "compact-20260101T000000Z-0123abcd"
    past.storage.put(f"{history.LEASES_FOLDER}/{dead}", f"{time.time() - LEASE_SECONDS - 1:.0f}\n".encode())
    found = vacuum(past.storage.root, DAY)
    assert (found.old_shards, found.orphans, found.parts, found.spared) == (1, 0, 0, 3)
    assert (found.living_runs, found.dead_runs) == (("alive",), (dead,))
    assert part.exists()
    assert past.storage.names(history.LEASES_FOLDER) == [f"{history.LEASES_FOLDER}/alive"]
    end_lease(past.storage, "alive")
    found = vacuum(past.storage.root, DAY)
    assert (found.orphans, found.parts, found.spared) == (1, 2, 0)
    assert orphan not in names(past)
    assert not past.storage.parts()


def test_what_was_written_a_short_while_ago_stays(past):
    orphan = past.put(modified=time.time() - DAY / 2).name
    assert vacuum(past.storage.root, DAY).orphans == 0
    assert orphan in names(past)
    assert vacuum(past.storage.root, DAY / 4).orphans == 1


def test_a_shard_that_a_living_run_wrote_again_is_an_orphan(past):
    """Its rows were lost, and the run that lives has just computed them once more, under the same name."""
    again = (live(past, 0) - live(past, 1)).pop()
    past.touch(again, time.time() - 60)
    take_lease(past.storage, "alive")
    assert vacuum(past.storage.root, 0.0).spared == 1
    assert again in names(past)


def test_a_damaged_log_deletes_nothing(past):
    entry = Path(past.storage.root) / "_delta_log" / f"{1:020d}.json"
    entry.write_bytes(entry.read_bytes().replace(b"record", b"rekord"))
    before = names(past)
    with pytest.raises(CorruptionError, match="log entry"):
        vacuum(past.storage.root, 0.0)
    assert names(past) == before


@pytest.mark.parametrize("seed", range(12))
def test_no_history_loses_what_a_kept_version_needs(tmp_path, monkeypatch, seed):
    """Random commits, removals, orphans and shards that come back, at random times; then every time to keep."""
    chooser = random.Random(seed)
    end = time.time()
    made = History(tmp_path / "cache", monkeypatch, end - 20 * DAY, num_rows=40)
    shards, times = [], []
    gone = []
    for _ in range(10):
        made.clock.now += chooser.uniform(0.01, 2) * DAY
        added = [made.put(1) for _ in range(chooser.randrange(3))]
        if gone and chooser.random() < 0.3:
            added.append(gone.pop())
            made.touch(added[-1].name, made.clock.now if chooser.random() < 0.5 else end - 20 * DAY)
        removed = chooser.sample(shards, chooser.randrange(len(shards) + 1)) if chooser.random() < 0.6 else []
        if chooser.random() < 0.3:
            made.put(1)
        made.commit(added, removed)
        times.append(made.clock.now)
        shards = [*(shard for shard in shards if shard not in removed), *added]
        gone += removed
    older_than = chooser.choice([0.0, 1.0, 3.0, 8.0, 30.0]) * DAY
    kept = [n for n in range(10) if n == 9 or times[n + 1] >= end - older_than]
    needed = set().union(*(live(made, number) for number in kept))
    young = {f.name for f in made.storage.files() if f.modified > end - older_than}
    before = names(made)
    planned = vacuum(made.storage.root, older_than, dry_run=True)
    found = vacuum(made.storage.root, older_than)
    assert planned == type(found)(**{**vars(found), "dry_run": True})
    assert names(made) == before & (needed | young)
    assert found.old_shards + found.orphans == len(before) - len(names(made))
    for number in range(10):
        whole = live(made, number) <= names(made)
        assert whole == (number not in found.unreadable_versions)
        assert whole or number not in kept
        if whole:
            assert Cache.open(made.storage.root, number).verify().shards == len(live(made, number))


def test_the_verb(past, capsys):
    root = past.storage.root
    assert teachonce.main(["vacuum", root, "--older_than", "15d", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "would delete: 1 shards of old versions" in out
    assert "kept: versions 1 to 2" in out
    assert teachonce.main(["vacuum", root, "--older_than=360h", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unreadable_versions"] == [0]
    assert teachonce.main(["vacuum", root, "--older_than=0d"]) == 0
    assert "can no longer be read: versions 0\n" in capsys.readouterr().out
    assert teachonce.main(["inspect", root, "--version=0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("text", ["7", "d", "-1d", "1.5d", "7 d", "7w", ""])
def test_other_durations_are_refused(text, past):
    with pytest.raises(UsageError, match="expected days or hours"):
        teachonce.main(["--traceback", "vacuum", past.storage.root, f"--older_than={text}"])
    with pytest.raises(ValueError, match="-1"):
        vacuum(past.storage.root, -1.0)


def test_numbers_as_people_write_them():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0 to 2, 5, 7 to 8"
    assert ranges([]) == ""
