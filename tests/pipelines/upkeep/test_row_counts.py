"""Every verb that commits leaves an index of row counts that is that of the rows, for every version."""

import pytest

from pipelines import CompactConfig, ThinConfig, compact, thin
from schemas import Cache, repair
from schemas.policies import TopK
from schemas.versions import row_index
from tests.pipelines.helpers import run, write_jsonl
from tests.pipelines.job.test_orphans import UNITS, crash
from tests.pipelines.people import FLAGS, call, people
from tests.schemas.requests import check_counts


@pytest.fixture
def no_footers(monkeypatch):
    """A commit whose counts were told reads no footer of a new shard."""

    def refuse(_, name, **__):
        raise AssertionError(f"the footer of {name} was read")

    monkeypatch.setattr(row_index, "open_footer", refuse)


def versions(path):
    """How many there are, once each has been checked."""
    newest = Cache.open(path).version
    for version in range(newest + 1):
        check_counts(path, version=version)
    return newest + 1


def test_nights_that_add_prune_and_replace(nights, teacher, tmp_path, no_footers):
    cache, _ = nights
    assert versions(cache) == 2
    edited = write_jsonl(tmp_path / "edited.jsonl", people(14, start=4, edited=(5, 9)))
    done = run(edited, teacher, cache, prune=True, replace=True, max_prune_fraction=1.0, **FLAGS)
    assert done.committed
    assert done.pruned_examples
    assert done.replaced_examples
    assert versions(cache) == 3


def test_compact_and_thin(nights, tmp_path, no_footers):
    cache, _ = nights
    assert compact(CompactConfig(cache=str(cache), unit_tokens=300, row_group_tokens=60)).committed
    assert versions(cache) == 3
    thin(ThinConfig(cache=str(cache), out=str(tmp_path / "thin"), keep=TopK(k=2)))
    check_counts(tmp_path / "thin", 0.3)


def test_forget_and_repair(nights):
    cache, _ = nights
    assert call(cache, "user-2").examples
    check_counts(cache)
    (cache / Cache.open(cache).shards[0].name).unlink()
    assert repair(cache).lost
    check_counts(cache)


def test_shards_of_a_crashed_run_that_are_adopted(corpus, teacher, tmp_path, monkeypatch, no_footers):
    crash(monkeypatch, corpus, teacher, tmp_path / "cache")
    assert run(corpus, teacher, tmp_path / "cache", **UNITS).adopted_documents
    assert versions(tmp_path / "cache") == 1
