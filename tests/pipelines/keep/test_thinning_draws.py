"""Draws from draws, and from whole distributions: every expectation is what it was, and no uniform serves twice."""

import itertools

import numpy as np
import pytest

from pipelines.keep import thinning
from pipelines.keep.servable import thinned_spec
from pipelines.keep.thinning import Weighed, redraw, thin_rows
from schemas.policies import KeepAll, Sampled, Threshold, TopK, TopP
from tests.pipelines.distributions import SOURCES, dense, drawn_rows, exact, same, shapes, spec_of, whole_rows

NONE = np.zeros(0, np.int32)


def draws(weights, tau):
    """Every outcome of the systematic sampler over u, as (length of u's interval, places kept), written anew."""
    running = np.cumsum(weights) / tau
    edges = np.unique(np.concatenate([[0.0, 1.0], running % 1.0]))
    for low, high in itertools.pairwise(edges):
        u = (low + high) / 2
        before = np.concatenate([[0.0], running[:-1]])
        yield high - low, u, np.flatnonzero(np.floor(running - u) > np.floor(before - u))


def thinned_expectation(p, old, new, *, weigh=False, same_uniform=False):
    """E of each id's weight after both draws: the first enumerated here, the second through `redraw`."""
    held, others = exact(p, old.tau, old.k)
    expectation = np.zeros(len(p))
    for length, u, places in draws(p[others], old.tau):
        drawn = [others[place] for place in places]
        seconds = [(1.0, u)] if same_uniform else second_uniforms(p, held, drawn, old, new)
        share, second = length * np.array([s for s, _ in seconds]), np.array([u for _, u in seconds])
        times = len(seconds)
        found = redraw(
            Weighed(
                weights=np.tile(p[held], times),
                ids=np.tile(np.array(held, np.int32), times),
                counts=np.full(times, len(held)),
                drawn_ids=np.tile(np.array(drawn, np.int32), times),
                drawn_counts=np.full(times, len(drawn)),
                tau=old.tau,
                most=1.0,
            ),
            new,
            len(p),
            second,
        )
        assert found.counts.max() <= np.ceil(1 / new.tau) + 1
        ids = np.concatenate([np.tile(held, times), np.tile(drawn, times)]).astype(np.int64)
        weights = np.where(np.arange(len(ids)) < len(held) * times, p[ids], old.tau)
        stays = np.arange(len(held)) < found.held[:, None]
        np.add.at(expectation, held, (stays * share[:, None]).sum(0) * p[held])
        which = np.repeat(share, found.counts)
        np.add.at(expectation, ids[found.drawn], which * (weights[found.drawn] if weigh else new.tau))
    return expectation


def second_uniforms(p, held, drawn, old, new):
    """The intervals of the second uniform between which the outcome cannot change, for entries in order of id."""
    light = [i for rank, i in enumerate(held) if not (rank < new.k or p[i] >= new.tau)]
    weight = dict.fromkeys(drawn, old.tau) | {i: p[i] for i in light}
    return [
        (length, u) for length, u, _ in draws(np.array([weight[i] for i in sorted(weight)] or [0.0]), new.tau)
    ]


POLICIES = [
    (Threshold(tau=1 / 16, k=1), Threshold(tau=1 / 8, k=1)),
    (Threshold(tau=1 / 16, k=8), Threshold(tau=1 / 8, k=1)),
    (Threshold(tau=0.03, k=8), Threshold(tau=0.11, k=3)),
    (Threshold(tau=0.07, k=5), Threshold(tau=0.07, k=2)),
]


@pytest.mark.parametrize(("old", "new"), POLICIES, ids=str)
@pytest.mark.parametrize("vocab_size", [3, 24])
def test_the_expectation_over_both_draws_is_the_teachers_distribution(old, new, vocab_size):
    for p in shapes(vocab_size, count=2):
        np.testing.assert_allclose(thinned_expectation(p, old, new), p, rtol=0, atol=1e-10)


def test_wrong_variants_are_seen_by_that_test():
    """Weights that are kept as they were, and one uniform for both draws."""
    old, new = POLICIES[2]
    wrong = {"weigh": True}, {"same_uniform": True}
    for variant in wrong:
        errors = [np.abs(thinned_expectation(p, old, new, **variant) - p).max() for p in shapes(24, count=2)]
        assert max(errors) > 1e-2, variant


@pytest.fixture
def uniform(monkeypatch):
    """Sets one uniform for every position of the next call."""

    def set_(value):
        monkeypatch.setattr(thinning, "uniforms", lambda ids, row, token, **_: np.full(len(row), value))

    return set_


STEPS = 128


@pytest.mark.parametrize("source", SOURCES)
def test_rows_keep_each_weight_in_the_mean_over_the_uniform(uniform, source):
    """An entry is kept on an interval of u, so that a grid of u meets its probability within one step."""
    p = shapes(60, count=7)
    rows = SOURCES[source](p)
    spec = thinned_spec(rows.spec, Threshold(tau=0.11, k=2))
    assert spec.own_logits == rows.spec.own_logits
    mean = np.zeros(p.shape)
    for step in range(STEPS):
        uniform((step + 0.5) / STEPS)
        found = thin_rows(rows, spec)
        found.check("thinned")
        mean += dense(found) / STEPS
    expected = dense(rows)
    if source == "whole":
        lower = ~exact_places(found)
        expected = np.where(lower, expected / expected.sum(1, keepdims=True), expected)
    assert np.abs(mean - expected).max() <= 0.11 / STEPS + 1e-6
    assert found.kept_counts.sum() < rows.kept_counts.sum()
    assert found.sampled_counts.sum() > 0


def exact_places(rows):
    return dense(rows, lambda found: found.is_exact) > 0


def test_what_stays_keeps_its_code_and_its_own_logprob(uniform):
    p = shapes(60, count=7)
    rows = SOURCES["own"](p)
    known = dense(rows, lambda found: found.logprobs)
    uniform(0.37)
    found = thin_rows(rows, thinned_spec(rows.spec, Threshold(tau=1 / 8, k=2)))
    after = dense(found, lambda found: found.logprobs)
    demoted = ~exact_places(found) & exact_places(rows) & (after != 0)
    assert demoted.sum() > 10
    np.testing.assert_array_equal(after[after != 0], known[after != 0])
    dropped = thin_rows(rows, thinned_spec(rows.spec, Threshold(tau=1 / 8, k=2), own_logits=False))
    assert "sampled_codes" not in dropped.data
    np.testing.assert_array_equal(dense(dropped), dense(found))


WARM = {"temperatures": (1.0, 2.0), "scalars": ("entropy", "logsumexp")}


@pytest.mark.parametrize("drawn", [False, True])
def test_declared_temperatures_keep_their_weights_too(uniform, drawn):
    """Decoded weights at each temperature, within the rounding of what was renormalised."""
    p = shapes(40, count=7)
    whole = whole_rows(p, spec_of(KeepAll(), 40, **WARM))
    rows = whole
    if drawn:
        uniform(0.61)
        rows = thin_rows(whole, thinned_spec(whole.spec, Threshold(tau=1 / 24, k=3)))
    spec = thinned_spec(rows.spec, Threshold(tau=1 / 7, k=2))
    assert (spec.own_logits, spec.temperatures) == (True, (1.0, 2.0))
    for temperature in spec.temperatures:
        mean = np.zeros(p.shape)
        for step in range(STEPS):
            uniform((step + 0.5) / STEPS)
            found = thin_rows(rows, spec)
            mean += dense(found, temperature=temperature) / STEPS
        found.check("thinned")
        expected = dense(rows, temperature=temperature)
        bound = 1 / 7 / STEPS + 1e-6 + (0 if drawn else (np.exp(1 / 16) - 1) * expected)
        assert (np.abs(mean - expected) <= bound).all()


def test_flat_rounded_weights_draw_no_more_than_the_format_allows(uniform):
    """267 probabilities that all decode to the largest, so that they sum to 1.03: that is rounding."""
    top = np.exp(-356 / 64)
    p = np.array([[top, *[top * np.exp(-0.031)] * 267, 0.0]] * 7)
    p[:, -1] = 1 - p.sum(1)
    assert (p > 0).all()
    rows = drawn_rows(p, np.full(7, 269), [NONE] * 7, spec_of(Threshold(tau=1 / 600), 269))
    assert np.exp(rows.kept_logprobs()).sum() / 7 > 1.02
    for value in np.linspace(0, 0.999, 40):
        uniform(value)
        for tau in (1 / 262, 1 / 255, 1 / 250):
            thin_rows(rows, thinned_spec(rows.spec, Threshold(tau=tau))).check("thinned")


def test_draws_with_replacement_are_those_of_the_hash():
    """Each draw is the entry on which its uniform falls; counts add up; zero probabilities are never drawn."""
    p = shapes(40, count=7)
    p[:, ::3] = 1e-300
    p /= p.sum(1, keepdims=True)
    rows = whole_rows(p, spec_of(KeepAll()))
    spec = thinned_spec(rows.spec, Sampled(n=400))
    found = thin_rows(rows, spec)
    found.check("thinned")
    weights = dense(found)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    decoded = dense(rows)
    decoded /= decoded.sum(1, keepdims=True)
    assert (weights[:, ::3] == 0).all()
    deviation = np.sqrt(decoded * (1 - decoded) / 400)
    assert np.abs(weights - decoded).max() < 5 * deviation.max()
    # of N positions and V ids the squared errors are those of independent draws, within 10%
    assert ((weights - decoded) ** 2).sum() == pytest.approx((deviation**2).sum(), rel=0.1)


@pytest.mark.parametrize(
    "keep", [Sampled(n=5), Threshold(tau=1 / 8), TopP(p=0.9, k=4), TopK(k=3), KeepAll()], ids=str
)
def test_a_row_group_without_positions_is_thinned_to_one(keep):
    rows = whole_rows(shapes(40, count=7), spec_of(KeepAll(), **WARM))
    none = rows.take(np.zeros(0, np.int64))
    found = thin_rows(none, thinned_spec(rows.spec, keep, temperatures=(1.0,), scalars=()))
    found.check("thinned")
    assert (len(found), found.num_positions, len(found.kept_ids)) == (0, 0, 0)


def test_a_rows_draw_depends_on_nothing_but_itself():
    """Alone, among others, in another order: so a bundle that runs twice stores the same bytes."""
    p = shapes(60, count=7)
    rows = SOURCES["drawn"](p)
    spec = thinned_spec(rows.spec, Threshold(tau=1 / 8, k=1))
    found = thin_rows(rows, spec)
    same(thin_rows(rows, spec), found)
    for number in range(len(rows)):
        one = np.array([number])
        same(thin_rows(rows.take(one), spec), found.take(one))
    back = np.arange(len(rows))[::-1]
    same(thin_rows(rows.take(back), spec), found.take(back))


def test_the_uniform_of_a_second_draw_is_another_and_of_a_third_too(monkeypatch):
    purposes = []
    real = thinning.uniforms
    monkeypatch.setattr(
        thinning, "uniforms", lambda *a, **named: purposes.append(named["purpose"]) or real(*a, **named)
    )
    rows = whole_rows(shapes(60, count=7), spec_of(KeepAll(), 60))
    for tau in (1 / 32, 1 / 16, 1 / 8):
        rows = thin_rows(rows, thinned_spec(rows.spec, Threshold(tau=tau)))
    assert purposes[0] == ""
    assert len(set(purposes)) == 3
