"""What a crashed run has finished is adopted: checked, less what is live, and without asking the teacher again."""

import shutil
import time

import pytest

from pipelines.job import pipeline as job
from pipelines.scoring import handler
from schemas import Cache
from schemas.errors import TeachonceError
from schemas.storage.storage import Storage
from schemas.versions.commits import read_version
from schemas.versions.history import LEASE_SECONDS, living_runs, orphans, take_lease
from tests.pipelines.helpers import config, documents, read, run, write_jsonl

UNITS = {"unit_tokens": 1000, "row_group_tokens": 200}


class Asked(list):
    """Which examples the teacher is asked about."""

    def __init__(self, monkeypatch):
        super().__init__()
        score = handler.UnitScorer.score

        def told(scorer, unit, examples):
            self.extend(example.id for example in examples)
            return score(scorer, unit, examples)

        monkeypatch.setattr(handler.UnitScorer, "score", told)


def crash(monkeypatch, corpus, teacher, cache, **changes):
    """A run that dies when all its shards are stored and nothing is committed."""

    def die(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(job, "finish", die)
        with pytest.raises(TeachonceError, match="killed"):
            run(corpus, teacher, cache, **UNITS, **changes)


@pytest.fixture(scope="module")
def _crashed(tmp_path_factory, corpus, teacher):
    cache = tmp_path_factory.mktemp("crashed") / "c"
    crash(pytest.MonkeyPatch(), corpus, teacher, cache)
    return cache


@pytest.fixture
def crashed(_crashed, tmp_path):
    """What such a run over the whole corpus left."""
    return shutil.copytree(_crashed, tmp_path / "c")


def test_the_next_run_adopts_every_finished_shard_and_asks_nothing(
    corpus, teacher, whole, crashed, monkeypatch
):
    left = {path.name for path in crashed.glob("*.parquet")}
    asked = Asked(monkeypatch)
    summary = run(corpus, teacher, crashed, **UNITS)
    assert asked == []
    assert (summary.adopted_documents, summary.new_documents, summary.version) == (24, 0, 0)
    assert summary.adopted_examples == Cache.open(crashed).verify().examples
    assert {shard.name for shard in Cache.open(crashed).shards} == left
    assert read(crashed).keys() == read(whole[0]).keys()


def test_only_what_is_missing_is_computed(corpus, teacher, whole, crashed, monkeypatch):
    lost = sorted(crashed.glob("*.parquet"))[0]
    lost.unlink()
    asked = Asked(monkeypatch)
    summary = run(corpus, teacher, crashed, **UNITS)
    rows = read(crashed)
    assert 0 < len(asked) == summary.totals.examples < len(rows)
    assert summary.adopted_examples + len(asked) == len(rows)
    assert rows.keys() == read(whole[0]).keys()


@pytest.mark.parametrize("place", [5, 0.5, -20])
def test_a_damaged_orphan_is_computed_again(corpus, teacher, whole, crashed, place):
    shard = sorted(crashed.glob("*.parquet"))[0]
    data = bytearray(shard.read_bytes())
    data[int(len(data) * place) if isinstance(place, float) else place] ^= 4
    shard.write_bytes(data)
    run(corpus, teacher, crashed, **UNITS)
    assert read(crashed).keys() == read(whole[0]).keys()
    Cache.open(crashed).verify()


def test_orphans_of_documents_that_are_live_or_gone_stay_out(tmp_path, teacher, monkeypatch):
    """Tonight's corpus decides: half of an orphan's documents are gone, and some were committed meanwhile."""
    every = write_jsonl(tmp_path / "all.jsonl", documents(24))
    tonight = write_jsonl(tmp_path / "tonight.jsonl", documents(16))
    crash(monkeypatch, every, teacher, tmp_path / "c")
    committed = write_jsonl(tmp_path / "first.jsonl", documents(4))
    stash = tmp_path / "stash"
    stash.mkdir()
    for path in (tmp_path / "c").glob("*.parquet"):
        shutil.move(path, stash / path.name)
    run(committed, teacher, tmp_path / "c", **UNITS)
    for path in stash.iterdir():
        shutil.move(path, tmp_path / "c" / path.name)
    asked = Asked(monkeypatch)
    summary = run(tonight, teacher, tmp_path / "c", **UNITS)
    assert asked == []
    assert (summary.known_documents, summary.adopted_documents) == (4, 12)
    run(tonight, teacher, tmp_path / "fresh", **UNITS)
    assert read(tmp_path / "c").keys() == read(tmp_path / "fresh").keys()
    Cache.open(tmp_path / "c").verify()


def test_two_crashed_runs_that_overlap_give_every_row_once(tmp_path, teacher, monkeypatch):
    first = write_jsonl(tmp_path / "a.jsonl", documents(16))
    second = write_jsonl(tmp_path / "b.jsonl", documents(24)[8:])
    crash(monkeypatch, first, teacher, tmp_path / "c")
    stash = tmp_path / "stash"
    shutil.copytree(tmp_path / "c", stash)
    for path in (tmp_path / "c").glob("*.parquet"):
        path.unlink()
    crash(monkeypatch, second, teacher, tmp_path / "c")
    shutil.copytree(stash, tmp_path / "c", dirs_exist_ok=True)
    asked = Asked(monkeypatch)
    every = write_jsonl(tmp_path / "all.jsonl", documents(24))
    assert run(every, teacher, tmp_path / "c", **UNITS).adopted_documents == 24
    assert asked == []
    run(every, teacher, tmp_path / "fresh", **UNITS)
    assert read(tmp_path / "c").keys() == read(tmp_path / "fresh").keys()


def test_another_specs_orphans_are_no_ones(corpus, teacher, crashed):
    summary = run(corpus, teacher, crashed, **UNITS, keep_text=True)
    assert (summary.adopted_documents, summary.new_documents) == (0, 24)
    Cache.open(crashed).verify()


def test_a_removed_shard_is_no_orphan(tmp_path, teacher):
    run(write_jsonl(tmp_path / "a.jsonl", documents(24)), teacher, tmp_path / "c", **UNITS)
    half = write_jsonl(tmp_path / "b.jsonl", documents(12))
    run(half, teacher, tmp_path / "c", **UNITS, prune=True, max_prune_fraction=1.0)
    opened = Cache.open(tmp_path / "c")
    files = {path.name for path in (tmp_path / "c").glob("*.parquet")}
    assert files > {shard.name for shard in opened.shards}
    assert orphans(opened.storage, read_version(opened.storage)) == []


def test_a_run_holds_a_lease_while_it_lives_and_gives_it_back(tmp_path, corpus, teacher, monkeypatch):
    seen = []
    finish = job.finish
    cache = Storage.at(tmp_path / "c")
    monkeypatch.setattr(job, "finish", lambda *a: seen.append(living_runs(cache)) or finish(*a))
    summary = run(corpus, teacher, tmp_path / "c", **UNITS)
    assert seen == [[summary.run]]
    assert living_runs(cache) == []


def test_a_run_that_gives_no_sign_of_life_for_long_is_dead(tmp_path, monkeypatch):
    cache = Storage.at(tmp_path / "c")
    take_lease(cache, "r1")
    assert living_runs(cache) == ["r1"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LEASE_SECONDS + 1)
    assert living_runs(cache) == []


def test_a_first_run_into_an_empty_folder_lists_nothing(tmp_path):
    assert orphans(Storage.at(tmp_path / "none"), None) == []
    assert config("a", "t", "c").max_hours is None
