"""Entries with their weights: at every declared temperature what the policy says, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from schemas.policies import Sampled, Threshold
from schemas.rows.entries import entries_of
from schemas.rows.ragged import Ragged, offsets_of
from schemas.rows.rows import Rows
from tests.synthetic import SPECS, causal_spec, random_rows

SOFTMAX = [name for name, spec in SPECS.items() if spec.score == "softmax"]


def by_position(values, counts):
    return np.split(values, np.cumsum(counts)[:-1])


@pytest.mark.parametrize("name", SOFTMAX)
def test_exact_entries_stand_first_then_drawn_ones(name):
    rows = random_rows(SPECS[name], 20).rows
    found = entries_of(rows)
    assert (found.counts == rows.kept_counts + rows.sampled_counts).all()
    assert (found.ids[found.is_exact] == rows.kept_ids).all()
    assert (found.logprobs[found.is_exact] == rows.kept_logprobs()).all()
    flags = by_position(found.is_exact, found.counts)
    assert all(
        f.tolist() == [True] * n + [False] * (len(f) - n)
        for f, n in zip(flags, rows.kept_counts, strict=True)
    )
    if rows.spec.is_sampling:
        drawn = by_position(rows.ragged("sampled_ids").values, rows.sampled_counts)
        pairs = zip(by_position(found.ids, found.counts), flags, drawn, strict=True)
        assert all(ids[~exact].tolist() == own.tolist() for ids, exact, own in pairs)


@pytest.mark.parametrize("name", SOFTMAX)
def test_exact_entries_weigh_their_probability(name):
    rows = random_rows(SPECS[name], 20).rows
    for temperature in rows.spec.temperatures:
        found = entries_of(rows, temperature)
        lse = rows.logsumexp(temperature) if temperature != 1 else None
        own = rows.kept_logprobs().astype(np.float64)
        if lse is not None:
            one = np.repeat(rows.logsumexp().astype(np.float64), rows.kept_counts)
            own = (own + one) / temperature - np.repeat(lse.astype(np.float64), rows.kept_counts)
        np.testing.assert_allclose(found.weights[found.is_exact], np.exp(own), rtol=3e-6)


def test_exact_entries_weigh_what_the_distribution_says():
    """Against the true probabilities at T, not against the codes' own arithmetic."""
    truth = random_rows(SPECS["temperatures"], 20)
    rows = truth.rows
    for t in rows.spec.temperatures:
        found = entries_of(rows, t)
        ones, lses = (np.repeat(rows.logsumexp(x).astype(np.float64), rows.kept_counts) for x in (1.0, t))
        true = (truth.logprobs + ones) / t - lses
        assert (
            np.abs(np.log(found.weights[found.is_exact]) - true).max()
            <= rows.spec.code_step_nats / 2 / t + 1e-4
        )


def test_draws_of_a_threshold_weigh_tau():
    rows = random_rows(SPECS["threshold"], 20).rows
    found = entries_of(rows)
    assert (found.weights[~found.is_exact] == np.float32(1 / 8)).all()
    assert np.isnan(found.logprobs[~found.is_exact]).all()


def test_draws_of_a_threshold_weigh_their_share_at_each_temperature():
    """tau p_T / m, m the largest over the declared temperatures; so the largest weight over them is tau."""
    truth = random_rows(SPECS["temperatures"], 20)
    rows, tau = truth.rows, 1 / 16
    weights = {t: entries_of(rows, t) for t in rows.spec.temperatures}
    drawn = np.array([found.weights[~found.is_exact] for found in weights.values()])
    np.testing.assert_allclose(drawn.max(axis=0), tau, rtol=1e-6)
    lse = {t: np.repeat(rows.logsumexp(t).astype(np.float64), rows.sampled_counts) for t in weights}
    logp = np.array([(truth.drawn + lse[1.0]) / t - lse[t] for t in weights])
    true = tau * np.exp(logp - logp.max(axis=0))
    step = rows.spec.code_step_nats / 2
    apart = step * (1 / 0.5 - 1 / 2)  # an error d moves log p_T by d / T
    assert np.abs(np.log(drawn / true)).max() <= apart + 1e-3
    assert drawn[1:].min() < tau / 2
    assert len(np.unique(drawn[0])) > 100


def test_draws_with_replacement_weigh_their_count():
    rows = random_rows(SPECS["sampled"], 20).rows
    found = entries_of(rows)
    assert not found.is_exact.any()
    sums = np.add.reduceat(found.weights.astype(np.float64), offsets_of(found.counts)[:-1])
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    assert (np.rint(found.weights * 13) == rows.ragged("sampled_counts").values).all()


@pytest.mark.parametrize("own_logits", [False, True])
def test_own_logprobs_are_there_where_they_are_stored(own_logits):
    for keep in (Threshold(tau=1 / 8), Sampled(n=9)):
        spec = causal_spec(keep=keep, temperatures=(1.0,), scalars=(), own_logits=own_logits)
        truth = random_rows(spec, 12)
        found = entries_of(truth.rows)
        own = found.logprobs[~found.is_exact]
        if own_logits:
            assert np.abs(own - truth.drawn).max() <= spec.code_step_nats / 2 + 1e-5
        else:
            assert np.isnan(own).all()


def test_weights_sum_to_one_when_everything_is_kept():
    spec = causal_spec(
        keep=Threshold(tau=1 / 8, k=50), temperatures=(1.0, 2.0), own_logits=True, vocab_size=50
    )
    rows = random_rows(spec, 12).rows
    assert not rows.sampled_counts.any()
    for t in spec.temperatures:
        found = entries_of(rows, t)
        sums = np.add.reduceat(found.weights.astype(np.float64), offsets_of(found.counts)[:-1])
        np.testing.assert_allclose(sums, 1, atol=np.expm1(spec.code_step_nats / 2))


def test_weights_of_an_unbiased_policy_are_its_distribution_on_average():
    """Over many positions, mean sum of weights is 1; what exact entries alone weigh is less."""
    spec = causal_spec(
        keep=Threshold(tau=1 / 8), temperatures=(1.0,), scalars=(), features=(), max_length=128
    )
    rows = random_rows(spec, 60).rows
    found = entries_of(rows)
    sums = np.add.reduceat(found.weights.astype(np.float64), offsets_of(found.counts)[:-1])
    assert abs(sums.mean() - 1) < 4 * sums.std() / np.sqrt(len(sums))
    exact = np.where(found.is_exact, found.weights, 0).astype(np.float64)
    assert np.add.reduceat(exact, offsets_of(found.counts)[:-1]).mean() < 0.9


@pytest.mark.parametrize("name", ["top_p", "threshold", "temperatures"])
def test_positions_without_any_entry(name):
    """The first, the last and two together; the others' entries are what they were."""
    rows = random_rows(SPECS[name], 20).rows
    before = entries_of(rows)
    emptied = np.arange(rows.num_positions) % 5 < 2
    emptied[-1] = True
    found = entries_of(without_entries(rows, emptied))
    assert (found.counts == np.where(emptied, 0, before.counts)).all()
    stays = np.repeat(~emptied, before.counts)
    assert 0 < stays.sum() < len(stays)
    for field in ("ids", "weights", "logprobs", "is_exact"):
        np.testing.assert_array_equal(getattr(found, field), getattr(before, field)[stays], field)


def without_entries(rows, emptied):
    """The same rows, as though some positions had kept nothing."""
    data = dict(rows.data)
    for number, names in (
        ("num_kept", ("kept_ids", "kept_codes")),
        ("num_sampled", ("sampled_ids", "sampled_codes")),
    ):
        if number not in data:
            continue
        counts, offsets = data[number].values, data[number].offsets
        left = np.where(emptied, 0, counts).astype(counts.dtype)
        data[number] = replace(data[number], values=left)
        for name in names:
            if name in data:
                values = data[name].values[np.repeat(~emptied, counts)]
                data[name] = Ragged(values=values, offsets=offsets_of(left)[offsets])
    return Rows(spec=rows.spec, data=data)


def test_rows_without_any_position():
    rows = random_rows(SPECS["threshold"], 4).rows.take(np.zeros(0, np.int64))
    found = entries_of(rows)
    assert (len(found.ids), len(found.counts), len(found.weights)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["top_p", "threshold", "temperatures", "sampled"])
def test_an_undeclared_temperature_is_refused(name):
    with pytest.raises(ValueError, match=r"temperatures .* not 3\.0"):
        entries_of(random_rows(SPECS[name], 4).rows, 3.0)
