"""The sampler is unbiased: proved over every outcome there is, without drawing; and it is its definition, id by id."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.keep.sampler import Scratch, draw_with_replacement, survey
from pipelines.keep.select import select
from pipelines.keep.top import top_k
from schemas.policies import Sampled, Threshold
from tests.pipelines.sampling import drawn_by_definition, outcomes, sample, truth

SHAPES = {"peaked": 8.0, "middling": 2.5, "flat": 0.02}
TEMPERATURES = [(1.0,), (1.0, 2.0), (1.0, 0.5, 4.0)]


def logits_of(kind, v, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "tied":
        return torch.randn(v, generator=generator).mul(2).round()
    return torch.randn(v, generator=generator) * SHAPES[kind]


def weights(known, is_exact, is_drawn, tau, temperature=0, wrong=None):
    """[U, V]: what a reader makes of each outcome, at one of the temperatures."""
    p = known.p[temperature]
    exact = np.where(is_exact, p, 0)
    if wrong == "tau on every rare id":
        exact = np.where(is_exact & (p < tau), tau, exact)
    share = 1 if wrong == "tau at every temperature" else p / known.m
    found = exact + np.where(is_drawn, tau * share, 0)
    return found / found.sum(1, keepdims=True) if wrong == "renormalised" else found


def bias(logits, tau, k, temperatures=(1.0,), wrong=None):
    """Largest error of the expected weights, and of the expected gradient of forward KL, over the temperatures."""
    known = truth(logits, tau, k, temperatures)
    chances, is_exact, is_drawn = outcomes(logits, tau, k, temperatures)
    assert (is_exact == known.is_exact).all()
    student = np.random.default_rng(1).normal(size=len(logits))
    q = np.exp(student) / np.exp(student).sum()
    errors = []
    for index, p in enumerate(known.p):
        found = weights(known, is_exact, is_drawn, tau, index, wrong)
        gradient = found.sum(1, keepdims=True) * q - found
        errors += [np.abs(chances @ found - p).max(), np.abs(chances @ gradient - (q - p)).max()]
    return max(errors)


@pytest.mark.parametrize("temperatures", TEMPERATURES)
@pytest.mark.parametrize("k", [0, 1, 8])
@pytest.mark.parametrize("kind", [*SHAPES, "tied"])
def test_weights_and_gradient_are_dense_in_expectation_at_every_temperature(kind, k, temperatures):
    for v, tau in ((512, 1 / 16), (300, 0.1), (130, 1 / 3), (64, 1 / 64), (5, 0.3)):
        assert bias(logits_of(kind, v), tau, k, temperatures) < 1e-10


@pytest.mark.parametrize(
    ("wrong", "k", "temperatures"),
    [
        ("tau on every rare id", 8, (1.0,)),
        ("renormalised", 1, (1.0,)),
        ("tau at every temperature", 1, (1.0, 2.0)),
    ],
)
def test_the_proof_fails_for_wrong_weights(wrong, k, temperatures):
    assert bias(logits_of("middling", 512), 1 / 16, k, temperatures, wrong) > 1e-4


@pytest.mark.parametrize("kind", [*SHAPES, "tied"])
@pytest.mark.parametrize(("v", "tau", "k"), [(5000, 1 / 16, 1), (64 * 9 + 1, 1 / 40, 8), (49_152, 1 / 8, 1)])
def test_what_is_drawn_is_what_the_definition_says(kind, v, tau, k):
    uniforms = [0.0, 0.123, 0.5, 1 - 2**-53, *np.random.default_rng(0).random(4)]
    logits = logits_of(kind, v)
    known = truth(logits, tau, k)
    is_exact, is_drawn = sample(logits, uniforms, tau, k)
    assert (is_exact == known.is_exact).all()
    for row, u in enumerate(uniforms):
        assert np.flatnonzero(is_drawn[row]).tolist() == drawn_by_definition(known, tau, u)


@pytest.mark.parametrize(("kind", "k"), [("peaked", 1), ("middling", 1), ("flat", 0)])
def test_the_variance_is_the_closed_form_and_below_that_of_independent_draws(kind, k):
    """At as many ids: systematic `tau M - sum of p^2` over the tail, independent `(1 - sum of p^2) / N`.

    Of a flat distribution the largest entry is one like all others: kept exactly it is one id of 17 that is lost.
    """
    logits, tau = logits_of(kind, 512), 1 / 16
    known = truth(logits, tau, k)
    chances, is_exact, is_drawn = outcomes(logits, tau, k)
    errors = weights(known, is_exact, is_drawn, tau) - known.p
    systematic = (chances @ errors**2).sum()
    tail = known.p[0, ~known.is_exact]
    assert systematic == pytest.approx(tau * tail.sum() - (tail**2).sum(), abs=1e-12)
    independent = (1 - (known.p**2).sum()) / draws_for(known.p[0], is_exact.sum() + tail.sum() / tau)
    assert systematic < independent


def draws_for(p, ids):
    """How many draws with replacement give so many different ids on average, by bisection."""
    low, high = 0.0, 1e9
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - p) ** middle).sum() < ids else (low, middle)
    return low


def surveyed(logits):
    return survey(logits, top_k(logits, 1), (1.0,), Scratch.of(len(logits), logits), tau=torch.inf, k=0)


def drawn_with_replacement(logits, uniforms, most_bytes=2**21):
    """[N, V]: how often each id was drawn for each position."""
    drawn = draw_with_replacement(logits, surveyed(logits), uniforms, most_bytes=most_bytes)
    counts = torch.zeros(logits.shape, dtype=torch.int64)
    for row, number in enumerate(drawn.counts.tolist()):
        assert (drawn.ids[row, :number].diff() > 0).all()
        assert (drawn.draws[row, :number] > 0).all()
        counts[row, drawn.ids[row, :number]] = drawn.draws[row, :number]
    assert (drawn.draws.sum(1) == uniforms.shape[1]).all()
    return counts


@pytest.mark.parametrize("v", [5, 64, 300, 5000])
@pytest.mark.parametrize("kind", [*SHAPES, "tied"])
def test_independent_draws_invert_the_cumulative_distribution(kind, v):
    logits = torch.stack([logits_of(kind, v, seed) for seed in range(5)])
    uniforms = torch.from_numpy(np.random.default_rng(0).random((5, 50)))
    uniforms[:, 0] = 0
    found = drawn_with_replacement(logits, uniforms)
    sums = logits.double().softmax(1).cumsum(1)
    expected = torch.searchsorted(sums / sums[:, -1:], uniforms, right=True).clamp(max=v - 1)
    for row in range(5):
        assert found[row].tolist() == torch.bincount(expected[row], minlength=v).tolist()


def looked_up_at_once(logits, uniforms):
    """[N, V]: the same draws with neither pieces nor bisection: each against all running sums of its block."""
    found = surveyed(logits)
    width = found.rare.shape[1] * 64
    mass = (logits - found.head_logits.double()).exp() / found.totals
    mass = torch.nn.functional.pad(mass, (0, width - logits.shape[1])).view(len(logits), -1, 64)
    ends = found.rare.cumsum(1)
    target = uniforms * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0)
    inside = before[:, :, None] + mass[torch.arange(len(logits))[:, None], block].cumsum(2)
    place = ((inside <= target[:, :, None]) & (inside < inside[:, :, -1:])).sum(2)
    counts = torch.zeros(len(logits), width, dtype=torch.int64)
    ids = block * 64 + place
    return counts.scatter_add_(1, ids, torch.ones_like(ids))[:, : logits.shape[1]]


@pytest.mark.parametrize("most_bytes", [1, 2**17, 2**30])
@pytest.mark.parametrize(("v", "draws"), [(5, 40), (300, 7), (5000, 50), (5000, 900)])
def test_pieces_and_blocks_that_are_looked_into_once_change_no_draw(v, draws, most_bytes):
    logits = torch.stack([logits_of(kind, v, seed) for kind in [*SHAPES, "tied"] for seed in range(5)])
    logits[3, v // 2 :] = -1e4
    uniforms = torch.from_numpy(np.random.default_rng(0).random((20, draws)))
    uniforms[:, :2] = torch.tensor([0.0, 1 - 2**-53])
    found = drawn_with_replacement(logits, uniforms, most_bytes)
    assert torch.equal(found, looked_up_at_once(logits, uniforms))


class Largest(TorchDispatchMode):
    """The bytes of the largest array that any operation returns."""

    size_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for array in found if isinstance(found, tuple | list) else (found,):
            if isinstance(array, torch.Tensor):
                self.size_bytes = max(self.size_bytes, array.nbytes)
        return found


@pytest.mark.parametrize("draws", [100, 1000])
def test_working_memory_is_bounded_however_many_the_draws(draws):
    logits = torch.stack([logits_of("flat", 4096, seed) for seed in range(64)])
    uniforms = torch.rand(64, draws, dtype=torch.float64)
    found = surveyed(logits)
    with Largest() as largest:
        drawn = draw_with_replacement(logits, found, uniforms, most_bytes=2**18)
    assert largest.size_bytes <= max(2**18, drawn.ids.nbytes)


@pytest.mark.parametrize("policy", [Threshold(tau=1 / 16), Sampled(n=9)])
def test_of_no_positions_nothing_is_drawn(policy):
    none = torch.zeros(0, 300)
    found = select(none, torch.zeros(0, dtype=torch.int64), policy, uniforms=none[:, :9].double())
    assert [len(column) for column in found] == [0] * len(found)
    assert (found.ids.shape[1], found.logsumexp.shape[1]) == (16 if isinstance(policy, Threshold) else 0, 1)


def test_an_id_without_mass_is_never_drawn():
    logits = torch.full((1, 200), -1e4)
    logits[0, [3, 70]] = 0.0
    uniforms = torch.tensor([[0.0, 0.25, 0.5 - 2**-53, 0.5, 0.75, 1 - 2**-53]], dtype=torch.float64)
    assert drawn_with_replacement(logits, uniforms)[0].nonzero()[:, 0].tolist() == [3, 70]
    labels = torch.zeros(1, dtype=torch.int64)
    found = select(logits, labels, Threshold(tau=0.1), uniforms=uniforms[:, 5:])
    assert (found.ids[0, :2].tolist(), found.counts.item(), found.num_sampled.item()) == ([3, 70], 2, 0)


@pytest.mark.parametrize("policy", [Threshold(tau=1 / 16, k=3), Threshold(tau=1 / 40), Sampled(n=9)])
def test_all_else_is_that_of_the_full_softmax(policy):
    logits = torch.stack([logits_of(kind, 700, seed) for kind in SHAPES for seed in range(9)])
    temperatures = (1.0, 2.0) if isinstance(policy, Threshold) else (1.0,)
    labels, uniforms = torch.arange(27) - 2, torch.rand(27, 9, dtype=torch.float64)
    found = select(logits.clone(), labels.clamp(min=-1), policy, temperatures, uniforms)
    logprobs = logits.double().log_softmax(1)
    for ids, own in ((found.ids, found.logprobs), (found.sampled_ids, found.sampled_logprobs)):
        np.testing.assert_allclose(own, logprobs.gather(1, ids), atol=1e-6)
    for column, temperature in enumerate(temperatures):
        exact = (logits.double() / temperature).logsumexp(1)
        np.testing.assert_allclose(found.logsumexp[:, column], exact, rtol=1e-6)
    np.testing.assert_allclose(found.top_logprob, logprobs.amax(1), atol=1e-6)
    np.testing.assert_allclose(found.entropy, -(logprobs.exp() * logprobs).sum(1), atol=1e-6)
    assert found.label_logprob[:2].isnan().all()
    np.testing.assert_allclose(found.label_logprob[2:], logprobs[range(2, 27), labels[2:]], atol=1e-6)
    kept = torch.arange(found.ids.shape[1]) < found.counts[:, None]
    mass = (logprobs.gather(1, found.ids).exp() * kept).sum(1)
    np.testing.assert_allclose(found.kept_mass, mass, atol=1e-6)


@pytest.mark.parametrize("policy", [Threshold(tau=1 / 16), Sampled(n=9)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_position_that_is_not_finite_says_so_and_harms_no_other(policy, bad):
    logits = torch.stack([logits_of("middling", 64 * 40, seed) for seed in range(6)])
    labels, uniforms = torch.zeros(6, dtype=torch.int64), torch.rand(6, 9, dtype=torch.float64)
    whole = select(logits.clone(), labels, policy, uniforms=uniforms)
    logits[2, 1000] = bad
    found = select(logits, labels, policy, uniforms=uniforms)
    fine = found.logsumexp[:, 0].isfinite() & found.entropy.isfinite()
    assert fine.tolist() == [True, True, False, True, True, True]
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one[fine], other[fine])
