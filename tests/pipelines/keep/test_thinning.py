"""Thinning row by row: the largest entries are the teacher's own, and what cannot be served is refused."""

import numpy as np
import pytest
import torch

from pipelines.keep.select import select
from pipelines.keep.servable import reason_against, thinned_spec
from pipelines.keep.thinning import thin_rows
from schemas.errors import UsageError
from schemas.policies import KeepAll, Threshold, TopK, TopP, parse_keep
from tests.pipelines.distributions import (
    SOURCES,
    kept_rows,
    same,
    shapes,
    spec_of,
    threshold_rows,
    whole_rows,
)


def encoded(p, policy):
    """The counts that the teacher's own step keeps of these probabilities."""
    found = select(torch.from_numpy(np.log(p)).float(), torch.full((len(p),), -1), policy)
    return found.counts.numpy()


def nucleus(p, mass):
    """How many largest entries have less than `mass` (one for each position) before them."""
    ordered = -np.sort(-p, axis=1)
    return np.maximum((np.cumsum(ordered, 1) - ordered < np.asarray(mass)[:, None]).sum(1), 1)


def shifted(mass, log_odds):
    """The mass whose odds are so much larger."""
    odds = mass / (1 - mass) * np.exp(log_odds)
    return odds / (1 + odds)


@pytest.mark.parametrize("mass", [0.5, 0.9, 0.99])
def test_the_cut_of_a_nucleus_from_all_lies_within_a_code_step_of_its_odds(mass):
    p = shapes(300, count=70)
    rows = whole_rows(p, spec_of(KeepAll(), 300))
    found = thin_rows(rows, thinned_spec(rows.spec, TopP(p=mass, k=250)))
    step, ones = rows.spec.code_step_nats, np.ones(len(p))
    assert (found.kept_counts >= np.minimum(nucleus(p, shifted(mass, -step) * ones), 250)).all()
    assert (found.kept_counts <= np.minimum(nucleus(p, shifted(mass, step) * ones), 250)).all()
    teacher = encoded(p, TopP(p=mass, k=250))
    assert (found.kept_counts == teacher).mean() > 0.5
    assert np.abs(found.kept_counts / teacher - 1).mean() < 0.01


@pytest.mark.parametrize("old", [TopP(p=0.97, k=200), TopK(k=200)], ids=str)
@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_the_cut_of_a_nucleus_from_a_part_lies_within_rounding(old, mass):
    """With nothing known of the sum, half a step to each side; a nucleus that ended by itself is known better."""
    p = shapes(300, count=70)
    counts = encoded(p, old)
    rows = kept_rows(p, counts, spec_of(old, 300))
    found = thin_rows(rows, thinned_spec(rows.spec, TopP(p=mass, k=150))).kept_counts
    half, ones = rows.spec.code_step_nats / 2, np.ones(len(p))
    low, high = mass * np.exp(-half) * ones, mass * np.exp(half) * ones
    if isinstance(old, TopP):
        ended = counts < old.k
        ordered = -np.sort(-p, axis=1)
        total = np.cumsum(ordered, 1)[np.arange(len(p)), counts - 1]
        last = ordered[np.arange(len(p)), counts - 1]
        guesses = [old.p + last * np.exp(sign * half) / 2 for sign in (-1, 1)]
        bounds = [
            total * shifted(mass / guess, sign * 2 * half)
            for guess, sign in zip(guesses[::-1], (-1, 1), strict=True)
        ]
        low, high = np.where(ended, bounds[0], low), np.where(ended, bounds[1], high)
    stored = np.minimum(counts, 150)
    assert (found >= np.minimum(nucleus(p, low), stored)).all()
    assert (found <= np.minimum(nucleus(p, high), stored)).all()


def test_the_same_mass_with_a_smaller_cap_is_the_teachers_own():
    p = shapes(300, count=7)
    old, new = TopP(p=0.9, k=100), TopP(p=0.9, k=20)
    rows = kept_rows(p, encoded(p, old), spec_of(old, 300))
    expected = kept_rows(p, encoded(p, new), spec_of(new, 300))
    same(thin_rows(rows, expected.spec), expected)


@pytest.mark.parametrize(
    ("old", "k"),
    [*((KeepAll(), k) for k in (1, 5, 39, 40, 99)), *((TopK(k=40), k) for k in (1, 5, 39))],
    ids=str,
)
def test_the_largest_are_the_teachers_own(old, k):
    p = shapes(40, count=7)
    rows = kept_rows(p, np.full(len(p), 40), spec_of(old))
    expected = kept_rows(p, np.full(len(p), min(k, 40)), spec_of(TopK(k=k)))
    same(thin_rows(rows, expected.spec), expected)


def test_the_largest_of_a_threshold_are_exact():
    p = shapes(60, count=7)
    rows = SOURCES["own"](p)
    expected = kept_rows(p, np.full(len(p), 3), spec_of(TopK(k=3), 60))
    assert thinned_spec(rows.spec, TopK(k=3)) == expected.spec
    same(thin_rows(rows, expected.spec), expected)


WARM = {"temperatures": (1.0, 2.0), "scalars": ("entropy", "logsumexp")}


def test_scalars_and_temperatures_that_are_left_out_leave():
    p = shapes(40, count=7)
    rows = whole_rows(p, spec_of(KeepAll(), **WARM))
    fewer = thin_rows(rows, thinned_spec(rows.spec, KeepAll(), temperatures=(1.0,)))
    np.testing.assert_array_equal(fewer.logsumexp(), rows.logsumexp(1.0))
    fewer.check("thinned")
    none = thin_rows(rows, thinned_spec(rows.spec, TopK(k=2), temperatures=(1.0,), scalars=()))
    assert not {"logsumexp", "entropy_codes"} & none.data.keys()
    none.check("thinned")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("top_k:8", "top_k:9", "at most the 8 largest"),
        ("top_k:8", "top_p:0.9,k=9", "at most the 8 largest"),
        ("top_p:0.9,k=8", "top_p:0.95,k=8", r"stopped at p=0\.9"),
        ("top_p:0.9,k=8", "top_p:0.8,k=9", "at most the 8 largest"),
        ("top_p:0.9,k=8", "top_k:3", "fewer than k"),
        ("top_k:8", "threshold:0.1", "tail is not stored"),
        ("top_p:0.9,k=8", "threshold:0.1", "tail is not stored"),
        ("top_k:8", "sampled:5", "tail is not stored"),
        ("top_k:8", "all", "gone"),
        ("threshold:0.1", "all", "gone"),
        ("threshold:0.1", "threshold:0.05", r"below tau=0\.1 were drawn"),
        ("threshold:0.1", "threshold:0.2,k=2", "at most the 1 largest"),
        ("threshold:0.1", "top_k:2", "at most the 1 largest"),
        ("threshold:0.1", "top_p:0.5,k=1", "no nucleus"),
        ("threshold:0.1", "sampled:5", "without"),
        ("sampled:9", "sampled:5", "fewer of its draws .* not built"),
        ("sampled:9", "sampled:10", "it made 9 draws"),
        ("sampled:9", "top_k:1", "do not tell which entries are the largest"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused_with_the_reason(old, new, reason):
    with pytest.raises(UsageError, match=f"cannot be thinned to .*{reason}"):
        thinned_spec(spec_of(parse_keep(old)), parse_keep(new))


def test_what_stands_beside_the_entries_must_be_there():
    drawn = spec_of(Threshold(tau=0.1), temperatures=(1.0, 2.0), own_logits=True, scalars=("logsumexp",))
    for spec, named, reason in (
        (spec_of(TopK(k=8)), {"scalars": ("gold",)}, "does not store gold"),
        (spec_of(TopK(k=8)), {"temperatures": (1.0, 2.0)}, r"not asked at temperatures 2\.0"),
        (drawn, {"temperatures": (1.0,)}, "weigh by all of them"),
        (spec_of(Threshold(tau=0.1)), {"own_logits": True}, "own log-probabilities"),
        (spec_of(TopK(k=8)), {}, "nothing would change"),
    ):
        with pytest.raises(UsageError, match=reason):
            thinned_spec(spec, spec.keep, **named)
    with pytest.raises(UsageError, match="make no spec"):
        thinned_spec(spec_of(TopK(k=8)), TopK(k=4), own_logits=True)
    for score in ("sigmoid", "identity"):
        spec = spec_of(KeepAll(), score=score, scalars=(), task="sequence-classification")
        assert "no distribution" in reason_against(spec, KeepAll()).reason


NEW_CACHE = "into a new cache"


@pytest.mark.parametrize(
    ("old", "new", "named", "do"),
    [
        ("top_k:8", "top_k:8", {}, "Train from this cache, or give a smaller --keep or fewer --scalars"),
        ("top_k:8", "top_k:4", {"temperatures": (1.0, 2.0)}, "Leave 2.0 out of --temperatures, or run"),
        ("top_k:8", "top_k:4", {"scalars": ("entropy", "gold")}, "Leave gold out of --scalars, or run"),
        ("top_k:8", "top_k:4", {"scalars": ("entropy", "gold")}, "with --scalars entropy gold " + NEW_CACHE),
        ("threshold:0.1", "threshold:0.2", {"own_logits": True}, "Leave out --own_logits, or run"),
        ("sampled:9", "sampled:5", {}, "Thin a cache of `all`, or run"),
        ("sampled:9", "sampled:5", {}, "with --keep sampled:5 " + NEW_CACHE),
        ("top_k:8", "all", {}, "Run `teachonce precompute` with --keep all " + NEW_CACHE),
    ],
)
def test_a_refusal_names_the_cache_and_what_to_do_about_its_reason(old, new, named, do):
    with pytest.raises(UsageError) as refused:
        thinned_spec(spec_of(parse_keep(old)), parse_keep(new), where="./larger", **named)
    assert do in refused.value.do
    assert ": ./larger: got " in str(refused.value)
    assert (NEW_CACHE in str(refused.value)) == (old != new)


def test_largest_entries_need_no_temperature_of_the_draws():
    """Of a cache that drew at (1, 2): what draws again needs both, and what copies exact entries does not."""
    p = shapes(40, count=7)
    warm = {"temperatures": (1.0, 2.0), "own_logits": True, "scalars": ("entropy", "logsumexp")}
    rows = threshold_rows(p, Threshold(tau=1 / 32, k=4), np.linspace(0.01, 0.97, len(p)), **warm)
    spec = thinned_spec(rows.spec, TopK(k=1), temperatures=(1.0,))
    assert (spec.temperatures, spec.own_logits) == ((1.0,), False)
    expected = kept_rows(p, np.ones(len(p), np.int64), spec)
    same(thin_rows(rows, spec), expected)
    with pytest.raises(UsageError, match=r"weigh by all of them.*Leave out --temperatures, or run"):
        thinned_spec(rows.spec, Threshold(tau=1 / 8), temperatures=(1.0,))
