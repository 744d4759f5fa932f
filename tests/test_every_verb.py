"""Whatever the system refuses, and Ctrl-C: at every verb one clear line and the status of `docs/exit-statuses.md`."""

import re
import shutil
import subprocess

import pytest

import teachonce
from schemas import Cache
from tests import every_verb

VERBS = tuple(every_verb.lines("/place"))
WRITERS = tuple(
    verb for verb, words in every_verb.lines("/place", out="/out").items() if "/out" in str(words)
)
"""Those that write somewhere else than into the cache."""
MENDERS = ("precompute", "verify --repair", "compact", "forget")
"""Those that write into the cache."""


def test_every_verb_is_here():
    assert {verb.split()[0] for verb in VERBS} == set(teachonce.VERBS)


@pytest.fixture(scope="module")
def call():
    with every_verb.process() as call:
        yield call


@pytest.fixture(scope="module")
def place(tmp_path_factory, call):
    return every_verb.make_place(tmp_path_factory.mktemp("verbs"), call)


@pytest.fixture
def cache(place, tmp_path):
    """A copy that a test may spoil."""
    yield shutil.copytree(place / "cache", tmp_path / "cache")
    subprocess.run(["chmod", "-R", "u+rwX", str(tmp_path)], check=True)


def line_of(told, verb):
    """The last line, which is the verb's; before it stand lines of a log alone, and nothing that a library says."""
    *log, last = told.err.splitlines() or [""]
    assert last.startswith(f"teachonce {verb.split()[0]}: "), told
    assert all(re.match(r"[0-9]{4}-[0-9-]+T[0-9:]+[+-][0-9]{4} ", line) for line in log), told
    assert "nobody foresaw" not in last
    assert "Traceback" not in told.err
    return last


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("unreadable", ["", "_teachonce/spec.json", "*.parquet", "_delta_log/*.json"])
def test_a_cache_that_may_not_be_read(call, place, cache, verb, unreadable):
    if unreadable == "*.parquet" and verb == "vacuum":
        pytest.skip("it opens no shard")
    for path in cache.glob(unreadable) if unreadable else [cache]:
        path.chmod(0)
    told = call(every_verb.lines(place, cache=cache, out=cache.parent)[verb])
    assert told.status == 1, told
    last = line_of(told, verb)
    assert "ermission" in last
    assert str(cache) in last


@pytest.mark.parametrize("verb", WRITERS)
def test_a_folder_that_may_not_be_written_to(call, place, tmp_path, verb):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    told = call(every_verb.lines(place, out=out)[verb])
    assert told.status == (1 if verb in ("thin", "merge") else 2), (
        told
    )  # those write a cache: its storage refuses
    last = line_of(told, verb)
    assert "ermission" in last
    assert str(out) in last
    assert [*out.iterdir()] == []


@pytest.mark.parametrize("verb", MENDERS)
def test_a_cache_that_may_not_be_written_to(call, place, cache, verb):
    subprocess.run(["chmod", "-R", "a-w", str(cache)], check=True)
    told = call(every_verb.lines(place, cache=cache)[verb])
    assert told.status == 1, told
    assert "ermission" in line_of(told, verb)
    assert Cache.open(cache).version == 1


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in (*WRITERS, *MENDERS, "vacuum")])
def test_who_only_reads_needs_no_right_to_write(call, place, cache, verb):
    subprocess.run(["chmod", "-R", "a-w", str(cache)], check=True)
    told = call(every_verb.lines(place, cache=cache)[verb])
    assert told.status == 0, told


@pytest.mark.parametrize("verb", ["precompute", "compact", *WRITERS])
def test_a_disk_without_room(call, place, cache, tmp_path, verb):
    """No file may grow beyond 600 bytes: the system refuses it in the middle of a write."""
    for one in ("", "-2") if verb == "precompute" else ():
        (tmp_path / f"more{one}.jsonl").write_text('{"text": "one of its own' + one + '"}\n')
    words = every_verb.lines(place, cache=cache, out=tmp_path)[verb]
    if verb == "precompute":
        words += ["--corpus", str(tmp_path / "more*.jsonl")]
    told = call(words, file_bytes=600)
    assert told.status in (1, 2), told
    last = line_of(told, verb)
    assert "large" in last or "full" in last or "I/O" in last, last
    assert Cache.open(cache).verify().shards >= 1
    assert call(words).status == 0


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("interrupt_at", ["read", "read_range"])
def test_ctrl_c(call, place, cache, tmp_path, verb, interrupt_at):
    if interrupt_at == "read_range" and verb in ("vacuum", "sweep"):
        pytest.skip("it opens no shard itself")
    told = call(every_verb.lines(place, cache=cache, out=tmp_path)[verb], interrupt_at=interrupt_at)
    assert told.status == 130, told
    assert "SIGINT" in line_of(told, verb)
    assert Cache.open(cache).verify().shards >= 1
    assert not [*cache.glob("_teachonce/holders/*"), *cache.glob("_teachonce/leases/*")]
