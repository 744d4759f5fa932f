"""kill -9 at any instant: the cache opens as before, the next run adopts what was finished, and rows are the same."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from schemas import Cache
from schemas.errors import NoCacheError
from tests.chaos import child
from tests.pipelines import models
from tests.pipelines.helpers import documents, run, write_jsonl

pytestmark = pytest.mark.chaos

KILLS = 30
UNITS = {"unit_tokens": 300, "row_group_tokens": 100}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return models.causal_teacher(tmp_path_factory.mktemp("teacher") / "llama")


def command(corpus, teacher, cache, *flags) -> list[str]:
    return [
        *("precompute", "--corpus", str(corpus), "--teacher", str(teacher), "--task", "causal-lm"),
        *("--cache", str(cache), "--max_length", "24", "--batch_tokens", "256", "--no_progress"),
        *("--unit_tokens", "300", "--row_group_tokens", "100", *flags),
    ]


def state(cache) -> tuple[int, frozenset[bytes]]:
    """The newest version and its ids; verified."""
    try:
        opened = Cache.open(cache)
    except NoCacheError:
        return -1, frozenset()
    verified = opened.verify()
    ids = [key for shard in opened.shards for key in opened.identities(shard).example_ids]
    assert verified.examples == len(ids) == len(set(ids))
    return opened.version, frozenset(ids)


def assert_nothing_finished_is_asked_again(events) -> None:
    """An example whose unit has ended has a durable shard: the teacher is never asked about it again."""
    done: set[str] = set()
    for what, ids in events:
        if what == "begin":
            assert not done & set(ids)
        else:
            done |= set(ids)


def test_many_kills_at_random_instants_over_a_growing_corpus(tmp_path, teacher):
    rng = random.Random(7)
    corpus, cache, log = tmp_path / "corpus.jsonl", tmp_path / "cache", tmp_path / "log"
    write_jsonl(corpus, documents(40))
    for timed in ("warm", "timed"):  # the first start of all waits for the fork server
        started = time.monotonic()
        assert child.finish(child.start(command(corpus, teacher, tmp_path / timed), log)) == 0
    longest = time.monotonic() - started
    log.unlink()
    before, killed, begun = (-1, frozenset()), 0, 0
    while killed < KILLS:
        write_jsonl(corpus, documents(40 + 4 * begun))
        begun += 1
        process = child.start(command(corpus, teacher, cache), log)
        time.sleep(rng.uniform(0.05, 0.9) * longest)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        after = state(cache)
        assert after == before or (after[0] == before[0] + 1 and after[1] > before[1])
        before = after
        assert begun < 3 * KILLS, "runs end before they are killed"
    assert child.finish(child.start(command(corpus, teacher, cache), log)) == 0, child.said(log)
    events = child.units(log)
    assert_nothing_finished_is_asked_again(events)
    run(corpus, teacher, tmp_path / "undisturbed", **UNITS)
    assert state(cache)[1] == state(tmp_path / "undisturbed")[1]
    asked = sum(len(ids) for what, ids in events if what == "begin")
    in_flight = [ids for what, ids in events if what == "begin"]
    assert asked <= len(state(cache)[1]) + killed * max(map(len, in_flight))


@pytest.mark.parametrize("night", ["first", "second", "prune"])
def test_kills_at_the_instants_at_which_something_becomes_durable(tmp_path, teacher, night):
    """Before and after each write, each sync and the commit: every fifth or seventh instant, so all kinds of them."""
    before = tmp_path / "before"
    flags = ["--prune", "--max_prune_fraction", "1"] if night == "prune" else []
    if night != "first":
        run(write_jsonl(tmp_path / "old.jsonl", documents(6)), teacher, before, **UNITS)
    tonight = documents(10)[2:] if night == "prune" else documents(10)
    corpus = write_jsonl(tmp_path / "corpus.jsonl", tonight)
    old, log = state(before), tmp_path / "log"
    undisturbed = copy(before, tmp_path / "undisturbed")
    assert child.finish(child.start(command(corpus, teacher, undisturbed, *flags), log)) == 0, child.said(log)
    new = state(undisturbed)
    total = child.instants(log)
    assert total > 20
    for instant in range(1 + len(night) % 3, total + 1, 5 if night == "second" else 7):
        cache = copy(before, tmp_path / "cache")
        log.unlink()
        killed = child.finish(child.start(command(corpus, teacher, cache, *flags), log, crash_at=instant))
        assert killed == -signal.SIGKILL
        assert state(cache) in (old, new), instant
        assert child.finish(child.start(command(corpus, teacher, cache, *flags), log)) == 0, child.said(log)
        assert state(cache) == new, instant
        assert_nothing_finished_is_asked_again(child.units(log))


def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target)
    return target


def test_the_installed_command_dies_like_any_process_and_the_next_goes_on(tmp_path, teacher):
    """The same, from the shell: the driver's whole process group is killed as the first shard appears."""
    corpus, cache = write_jsonl(tmp_path / "c.jsonl", documents(200)), tmp_path / "cache"
    argv = [sys.executable, "-m", "teachonce", *command(corpus, teacher, cache)]
    process = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(cache.glob("*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert state(cache) == (-1, frozenset())
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run(corpus, teacher, tmp_path / "undisturbed", **UNITS)
    assert state(cache)[1] == state(tmp_path / "undisturbed")[1]


def test_two_runs_at_once_give_every_row_once(tmp_path, teacher):
    """Both finish: the one that is overtaken starts again by itself, and adopts what it had finished."""
    cache = tmp_path / "cache"
    run(write_jsonl(tmp_path / "old.jsonl", documents(6)), teacher, cache, **UNITS)
    parts = [write_jsonl(tmp_path / f"{n}.jsonl", documents(60)[n:]) for n in (0, 20)]
    logs = [tmp_path / f"log{n}" for n in range(2)]
    pair = [child.start(command(p, teacher, cache), log) for p, log in zip(parts, logs, strict=True)]
    assert [child.finish(process) for process in pair] == [0, 0], [child.said(log) for log in logs]
    run(write_jsonl(tmp_path / "all.jsonl", documents(60)), teacher, tmp_path / "undisturbed", **UNITS)
    assert state(cache)[1] == state(tmp_path / "undisturbed")[1]


@contextlib.contextmanager
def small_disk(path, size: str):
    """A tmpfs of a few hundred kilobytes."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a disk that is full needs the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_one_clear_error_and_the_cache_opens_as_before(tmp_path, teacher):
    old = write_jsonl(tmp_path / "old.jsonl", documents(6))
    every = write_jsonl(tmp_path / "every.jsonl", documents(300))
    with small_disk(tmp_path / "disk", "2m") as disk:
        run(old, teacher, disk / "cache", **UNITS)
        before, log = state(disk / "cache"), tmp_path / "log"
        assert child.finish(child.start(command(every, teacher, disk / "cache"), log)) == 1
        assert "No space left on device" in child.said(log)
        assert child.said(log).count("\n") == 1
        assert state(disk / "cache") == before
        assert not list((disk / "cache").glob("*.part-*"))


def test_a_read_only_cache_is_one_clear_error_and_opens_as_before(tmp_path, teacher):
    old = write_jsonl(tmp_path / "old.jsonl", documents(6))
    more = write_jsonl(tmp_path / "more.jsonl", documents(9))
    with small_disk(tmp_path / "disk", "8m") as disk:
        run(old, teacher, disk / "cache", **UNITS)
        before, log = state(disk / "cache"), tmp_path / "log"
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert child.finish(child.start(command(more, teacher, disk / "cache"), log)) == 1
        assert "Read-only file system" in child.said(log)
        assert child.said(log).count("\n") == 1
        assert state(disk / "cache") == before
