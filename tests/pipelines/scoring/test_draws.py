"""Caches that draw, by the whole write path: precompute, shards, and back as a reader takes them."""

import math

import numpy as np
import pytest

from schemas import Cache
from schemas.policies import Sampled, Threshold
from schemas.rows.entries import entries_of
from tests.pipelines import models
from tests.pipelines.helpers import documents, run, write_jsonl
from tests.pipelines.oracle import HALF_STEP, ROUNDING, Oracle, logsumexp


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("few") / "few.jsonl", documents(7))


def positions(cache, teacher, temperature=1.0):
    """Each position's full distribution [T, V], from a plain forward, and its entries: `_FIELDS`."""
    opened, oracle = Cache.open(cache), Oracle(teacher)
    for rows in opened.read_all():
        for index in range(len(rows)):
            row = rows.take(np.array([index]))
            scores = oracle.truth({"input_ids": row.input_ids.values}).logits[row.position_index()]
            found = entries_of(row, temperature)
            ends = np.cumsum(found.counts)
            for n, end in enumerate(ends):
                part = slice(end - found.counts[n], end)
                p = [
                    np.exp(scores[n] / t - logsumexp(scores[n : n + 1] / t)) for t in opened.spec.temperatures
                ]
                yield np.stack(p), [getattr(found, name)[part] for name in _FIELDS]


_FIELDS = ("ids", "weights", "logprobs", "is_exact")


@pytest.mark.parametrize(
    "flags",
    [
        {"keep": Threshold(tau=1 / 16)},
        {"keep": Threshold(tau=1 / 16, k=4), "own_logits": True},
        {"keep": Threshold(tau=1 / 16), "temperatures": (1.0, 2.0)},
    ],
)
def test_a_threshold_cache_holds_what_the_definition_says(tmp_path, few, teacher, flags):
    run(few, teacher, tmp_path / "c", **flags)
    keep, temperatures = flags["keep"], flags.get("temperatures", (1.0,))
    has_own = len(flags) > 1
    for index, temperature in enumerate(temperatures):
        for p, (ids, weights, logprobs, is_exact) in positions(tmp_path / "c", teacher, temperature):
            m, exact = p.max(0), ids[is_exact]
            expected = max(keep.k, int((m >= keep.tau).sum()))
            assert exact.tolist() == np.argsort(-p[0], kind="stable")[:expected].tolist()
            assert len(set(ids.tolist())) == len(ids)
            drawn = ids[~is_exact]
            rounding = np.exp(2 * HALF_STEP) - 1
            np.testing.assert_allclose(weights[is_exact], p[index, exact], rtol=rounding)
            share = p[index, drawn] / m[drawn] if len(temperatures) > 1 else 1.0
            np.testing.assert_allclose(weights[~is_exact], keep.tau * share, rtol=2 * rounding)
            total = m[np.setdiff1d(np.arange(len(m)), exact)].sum() / keep.tau
            assert math.floor(total) <= len(drawn) <= math.ceil(total)
            assert np.isnan(logprobs[~is_exact]).all() == (not has_own)
            if has_own:
                np.testing.assert_allclose(logprobs, np.log(p[0, ids]), atol=HALF_STEP + ROUNDING)


def test_a_cache_of_draws_holds_their_counts_and_a_seed_decides_them(tmp_path, few, teacher):
    keep = Sampled(n=13)
    for name, seed in (("c", 0), ("again", 0), ("other", 1)):
        run(few, teacher, tmp_path / name, keep=keep, sample_seed=seed, own_logits=True)
    for p, (ids, weights, logprobs, is_exact) in positions(tmp_path / "c", teacher):
        assert not is_exact.any()
        assert (weights * 13).sum() == pytest.approx(13)
        np.testing.assert_allclose(weights * 13, np.rint(weights * 13), atol=1e-5)
        np.testing.assert_allclose(logprobs, np.log(p[0, ids]), atol=HALF_STEP + ROUNDING)
    assert shards(tmp_path / "c") == shards(tmp_path / "again")
    ours, theirs = (
        np.concatenate([r.ragged("sampled_ids").values for r in Cache.open(tmp_path / n).read_all()])
        for n in ("c", "other")
    )
    assert ours.tolist() != theirs.tolist()


def shards(cache):
    """The bytes of a cache's shards."""
    return sorted(path.read_bytes() for path in cache.glob("*.parquet"))


def test_the_same_logits_and_seed_give_the_same_bytes(tmp_path, few, teacher):
    for name, seed in (("c", 5), ("again", 5), ("other", 6)):
        run(few, teacher, tmp_path / name, keep=Threshold(tau=1 / 16), sample_seed=seed)
    assert shards(tmp_path / "c") == shards(tmp_path / "again") != shards(tmp_path / "other")


def test_hits_in_each_decade_of_a_real_vocabulary_are_as_many_as_expected(tmp_path, few):
    """Pooled: a single id of 49,152 is hit too rarely to say anything, and thousands of tests fail a right sampler.

    A bin's variance is at most that of independent hits. The seed is fixed; 4 standard deviations are allowed.
    """
    size = {"vocab_size": 49_152, "hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    teacher = models.causal_teacher(tmp_path / "teacher", initializer_range=1.0, **size)
    run(few, teacher, tmp_path / "c", keep=Threshold(tau=1 / 64))
    edges = 10.0 ** np.arange(-14, 1)
    hits, expected, variance = (np.zeros(len(edges) + 1) for _ in range(3))
    for p, (ids, _, _, is_exact) in positions(tmp_path / "c", teacher):
        tail = p[0].copy()
        tail[ids[is_exact]] = 0
        chances, places = tail * 64, np.searchsorted(edges, p[0])
        expected += np.bincount(places, chances, len(hits))
        variance += np.bincount(places, chances * (1 - chances), len(hits))
        hits += np.bincount(places[ids[~is_exact]], minlength=len(hits))
    large = expected >= 100
    assert large.sum() >= 3
    assert hits.sum() > 3000
    assert np.abs((hits - expected)[large] / np.sqrt(variance[large])).max() < 4
