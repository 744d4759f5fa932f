"""Thinning row by row: largest entries are the teacher's own; draws from draws keep every expectation."""

import itertools

import numpy as np
import pytest
import torch

from pipelines import thinning
from pipelines.select import select
from pipelines.servable import reason_against, thinned_spec
from pipelines.thinning import Weighed, redraw, thin_rows
from schemas.entries import entries_of
from schemas.errors import UsageError
from schemas.policies import KeepAll, Sampled, Threshold, TopK, TopP, parse_keep
from schemas.ragged import Ragged
from tests.pipelines.distributions import drawn_rows, kept_rows, shapes, spec_of, whole_rows

NONE = np.zeros(0, np.int32)


def exact(p, tau, k):
    """The ids that `threshold` holds exactly, descending, and all others ascending."""
    order = np.argsort(-p, kind="stable")
    held = [i for rank, i in enumerate(order) if rank < k or p[i] >= tau]
    return held, sorted(set(range(len(p))) - set(held))


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


def threshold_rows(p, keep, uniform, **changes):
    """Rows of a threshold policy, drawn from unrounded probabilities."""
    spec = spec_of(keep, p.shape[1], **changes)
    ranked = [exact(row, keep.tau, keep.k) for row in p]
    drawn = []
    for row, (_, others), u in zip(p, ranked, uniform, strict=True):
        running = np.cumsum(row[others]) / keep.tau
        kept = np.floor(running - u) > np.floor(np.concatenate([[0.0], running[:-1]]) - u)
        drawn.append(np.array(others)[kept])
    return drawn_rows(p, [len(held) for held, _ in ranked], drawn, spec)


def dense(rows, weights_of=lambda found: found.weights, temperature=1.0):
    """[N, V]: what each id weighs."""
    found = entries_of(rows, temperature)
    weights = np.zeros((rows.num_positions, rows.spec.vocab_size))
    np.add.at(weights, (np.repeat(np.arange(len(found.counts)), found.counts), found.ids), weights_of(found))
    return weights


SOURCES = {
    "whole": lambda p: whole_rows(p, spec_of(KeepAll(), p.shape[1])),
    "drawn": lambda p: threshold_rows(p, Threshold(tau=1 / 32, k=4), np.linspace(0.01, 0.97, len(p))),
    "own": lambda p: threshold_rows(
        p, Threshold(tau=1 / 32, k=4), np.linspace(0.2, 0.9, len(p)), own_logits=True
    ),
}
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


@pytest.mark.parametrize("k", [1, 5, 39, 40, 99])
@pytest.mark.parametrize("old", [KeepAll(), TopK(k=40)], ids=str)
def test_the_largest_are_the_teachers_own(old, k):
    p = shapes(40, count=7)
    rows = kept_rows(p, np.full(len(p), 40), spec_of(old))
    if isinstance(old, TopK) and k > old.k:
        return
    expected = kept_rows(p, np.full(len(p), min(k, 40)), spec_of(TopK(k=k)))
    same(thin_rows(rows, expected.spec), expected)


def test_the_largest_of_a_threshold_are_exact():
    p = shapes(60, count=7)
    rows = SOURCES["own"](p)
    expected = kept_rows(p, np.full(len(p), 3), spec_of(TopK(k=3), 60))
    assert thinned_spec(rows.spec, TopK(k=3)) == expected.spec
    same(thin_rows(rows, expected.spec), expected)


def same(rows, expected):
    assert rows.data.keys() == expected.data.keys()
    for name, column in rows.data.items():
        other = expected.data[name]
        if not isinstance(column, Ragged):
            np.testing.assert_array_equal(column, other)
            continue
        for part in ("values", "offsets", "validity"):
            np.testing.assert_array_equal(getattr(column, part), getattr(other, part), name)


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
        ("sampled:9", "sampled:5", "independent draws"),
        ("sampled:9", "top_k:1", "independent draws"),
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
        assert "no distribution" in reason_against(spec, KeepAll())
