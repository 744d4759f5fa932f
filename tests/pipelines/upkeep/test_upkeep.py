"""The verbs that keep a cache, in the order in which people meet them, on caches of the real precompute."""

import shutil

import numpy as np
import pytest

from pipelines import CompactConfig, ForgetConfig, compact, forget
from pipelines.scoring import handler
from schemas import Cache, repair, vacuum
from schemas.errors import CorruptionError, NoCacheError
from tests.pipelines.helpers import documents, read, run, write_jsonl
from tests.pipelines.people import FLAGS, document_of, people, traces


@pytest.fixture
def asked(monkeypatch):
    """The example ids that the teacher is asked about."""
    honest, ids = handler.UnitScorer.score, []

    def listen(self, unit, examples):
        ids.extend(example.id for example in examples)
        return honest(self, unit, examples)

    monkeypatch.setattr(handler.UnitScorer, "score", listen)
    return ids


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-9])
    else:
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_what_was_lost_is_computed_again_and_only_that(tmp_path, whole, corpus, teacher, asked, how):
    cache = shutil.copytree(whole[0], tmp_path / "cache")
    before, opened = read(cache), Cache.open(cache)
    assert len(opened.shards) > 2
    shard = opened.shards[1]
    lost = set(opened.identities(shard).example_ids)
    damage(cache / shard.name, how)
    if how != "flipped":
        with pytest.raises(CorruptionError):
            run(corpus, teacher, cache)
    found = repair(cache)
    assert ([one.name for one in found.lost], found.lost_examples) == ([shard.name], len(lost))
    assert read(cache).keys() == before.keys() - lost
    summary = run(corpus, teacher, cache, row_group_tokens=100)
    assert (summary.committed, summary.totals.examples) == (True, len(lost))
    assert sorted(asked) == sorted(lost)
    assert Cache.open(cache).verify().examples == len(before)
    after = read(cache)
    assert after.keys() == before.keys()
    for example, row in before.items():
        np.testing.assert_array_equal(after[example]["input_ids"], row["input_ids"])
        np.testing.assert_allclose(after[example]["logprobs"], row["logprobs"], atol=0.07)
    assert run(corpus, teacher, cache).committed is False


def test_a_cache_is_kept_for_weeks(tmp_path, teacher, asked):
    """Nights, then compact, forget, vacuum, a lost file and its repair: the rows are those of one run, less one."""
    cache = tmp_path / "cache"
    for night in range(4):
        corpus = write_jsonl(tmp_path / f"{night}.jsonl", people(4 + 4 * night))
        run(corpus, teacher, cache, **FLAGS)
    whole = read(cache)
    digest, examples = document_of(cache, "user-9")
    assert compact(CompactConfig(cache=str(cache), unit_tokens=200, row_group_tokens=60)).committed
    assert forget(ForgetConfig(cache=str(cache), ids=("user-9",))).documents == 1
    assert traces(cache, digest, "secret-of-9.") == set()
    expected = whole.keys() - set(examples)
    assert read(cache).keys() == expected
    found = vacuum(cache, 0.0)
    live = {shard.name for shard in Cache.open(cache).shards}
    assert {path.name for path in cache.glob("*.parquet")} == live
    assert found.unreadable_versions == tuple(range(found.version))
    with pytest.raises(NoCacheError, match="can no longer be read"):
        read(Cache.open(cache, 3))
    (cache / sorted(live)[0]).unlink()
    assert repair(cache).committed
    asked.clear()
    summary = run(corpus, teacher, cache, **FLAGS)
    assert summary.totals.examples == len(asked) == len(expected) - _known(cache) > 0
    assert read(cache).keys() == expected
    Cache.open(cache).verify()


def _known(cache):
    """Rows of the version before the newest."""
    opened = Cache.open(cache)
    return Cache.open(cache, opened.version - 1).record.live_rows


def test_a_compacted_cache_goes_on_growing(tmp_path, teacher, asked):
    cache = tmp_path / "cache"
    for count in (6, 12):
        run(write_jsonl(tmp_path / "c.jsonl", documents(count)), teacher, cache)
    assert compact(CompactConfig(cache=str(cache))).shards == 1
    asked.clear()
    summary = run(write_jsonl(tmp_path / "c.jsonl", documents(15)), teacher, cache)
    assert (summary.new_documents, summary.known_documents) == (3, 12)
    assert len(asked) == summary.totals.examples
    Cache.open(cache).verify()
