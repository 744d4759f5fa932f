"""A sample says of a cache what reading all of it says, and reads no more than it was given to."""

import numpy as np
import pytest

from schemas import Cache
from schemas.cli.cache_report import bytes_by_column
from schemas.reports.cache_facts import cache_facts
from schemas.reports.cache_section import sample_told
from schemas.reports.plots.plot import Missing
from schemas.reports.plots.plots import CACHE_PLOTS
from schemas.reports.sampling import sample_of
from schemas.rows.rows import Rows
from schemas.versions.commits import base_version
from tests.synthetic import SPECS, add, begin, causal_spec, make_cache, random_rows


def many_shards(folder, shards=6, rows=12) -> Cache:
    every = random_rows(causal_spec(), shards * rows).rows
    storage = begin(folder, every.spec)
    for number in range(shards):
        part = every.take(np.arange(number * rows, (number + 1) * rows))
        add(storage, base_version(storage) if number else None, [part], run=f"run {number}")
    return Cache.open(storage.root)


@pytest.fixture
def counted(monkeypatch):
    """Tokens that are read of row groups."""
    seen: list[int] = []
    real = Cache.read_group

    def read_group(self, shard, place):
        rows = real(self, shard, place)
        seen.append(rows.num_tokens)
        return rows

    monkeypatch.setattr(Cache, "read_group", read_group)
    monkeypatch.setattr(Cache, "read", lambda *_: pytest.fail("a row group was read past the budget"))
    return seen


def test_all_of_a_small_cache_is_read(tmp_path):
    cache = many_shards(tmp_path / "cache")
    found, every = sample_of(cache, 2**20), Rows.concatenate([*cache.read_all()])
    assert found.is_whole
    assert (found.tokens, found.examples) == (cache.totals.tokens, cache.totals.examples)
    by_hand = [
        float(np.exp(part.astype(np.float64)).sum())
        for part in np.split(every.kept_logprobs(), every.kept_offsets[1:-1])
    ]
    assert np.sort(found.kept_mass) == pytest.approx(np.sort(by_hand), rel=1e-6)
    assert np.array_equal(np.sort(found.entropy_nats), np.sort(every.entropy()))
    assert np.array_equal(np.sort(found.kept), np.sort(every.kept_counts + every.sampled_counts))
    whole = {name: size / cache.totals.tokens for name, size in bytes_by_column(cache).items()}
    assert found.column_bytes == pytest.approx(whole)


def test_a_budget_is_kept_and_told(tmp_path, counted):
    cache = many_shards(tmp_path / "cache")
    found = sample_of(cache, 200)
    assert sum(counted[:-1]) < 200 <= sum(counted) == found.tokens < cache.totals.tokens
    assert not found.is_whole
    facts = cache_facts(cache, 200)
    assert facts.sample.tokens == found.tokens
    assert f"{found.tokens:,} of {cache.totals.tokens:,} tokens" in sample_told(facts)
    assert "--sample_tokens" in sample_told(facts)


def test_a_sample_is_the_same_every_time_and_comes_of_many_shards(tmp_path):
    cache = many_shards(tmp_path / "cache")
    first, again = sample_of(cache, 300), sample_of(cache, 300)
    assert np.array_equal(first.kept_mass, again.kept_mass)
    assert first.shards == len(cache.shards)
    assert 1 < first.row_groups < 12


def test_few_footers_are_opened_of_many_shards(tmp_path, monkeypatch):
    cache = many_shards(tmp_path / "cache")
    monkeypatch.setattr("schemas.reports.sampling.MOST_SHARDS", 2)
    found = sample_of(cache, 2**20)
    assert found.shards == 2
    assert not found.is_whole
    assert found.examples == 24


@pytest.mark.parametrize("name", SPECS)
def test_caches_of_every_policy_and_task(tmp_path, name):
    cache = make_cache(tmp_path / "cache", SPECS[name])
    facts = cache_facts(cache, 2**20)
    assert len(facts.sample.kept_mass) == facts.totals.positions
    for plot in CACHE_PLOTS:
        drawn = plot.draw(facts)
        assert isinstance(drawn, Missing) or all(chart.to_dict()["data"] for chart in drawn.values())


def test_changes_between_runs_of_the_teacher(tmp_path):
    rows = random_rows(causal_spec(), 30).rows
    storage = begin(tmp_path / "cache", rows.spec)
    for number, device in enumerate(("cpu", None, "cuda")):
        told = {} if device is None else {"device": device, "torch": "2"}
        base = base_version(storage) if number else None
        part = rows.take(np.arange(10 * number, 10 * number + 10))
        add(storage, base, [part], run=f"r{number}", provenance=told, rejects={"empty": number})
    facts = cache_facts(Cache.open(storage.root), 2**20)
    assert [(c.version, c.name, c.before, c.after) for c in facts.changes] == [(2, "device", "cpu", "cuda")]
    assert facts.rejects == {"empty": 3}
    assert [one.rejects for one in facts.versions] == [0, 1, 2]
