"""Keep policies on logits: the largest by value and then by id, and how many, for every shape of ties."""

import numpy as np
import pytest
import torch

from pipelines.keep.select import select
from pipelines.keep.top import by_loops, by_torch, top_k
from schemas.policies import KeepAll, TopK, TopP

SHAPES = [(5, 7), (4, 300), (3, 64 * 40 + 13), (3, 64 * 40)]


def by_definition(logits, k):
    """Ids of the k largest, of equal ones the lower ids, from numpy's stable sort."""
    return np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :k]


def logits_of(n, v, kind, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(n, v)
    return {"distinct": logits, "tied": (logits * 2).round(), "equal": torch.zeros(n, v)}[kind].float()


@pytest.mark.parametrize("how", [top_k, by_loops, by_torch])
@pytest.mark.parametrize(("n", "v"), SHAPES)
@pytest.mark.parametrize("kind", ["distinct", "tied", "equal"])
def test_top_k_is_the_stable_sorts_head(n, v, kind, how):
    logits = logits_of(n, v, kind)
    for k in {1, 2, 5, min(v, 9), min(v, 64), v}:
        values, ids = how(logits.clone(), k)
        assert ids.numpy().tolist() == by_definition(logits, k).tolist()
        assert torch.equal(values, logits.gather(1, ids))


@pytest.mark.parametrize("v", [70, 64 * 40 + 13])
def test_loops_keep_what_torch_keeps_of_odd_values_to_the_last_bit(v):
    """Zeros of both signs, infinities, the smallest numbers, and logits in ascending order."""
    rows = logits_of(8, v, "tied")
    rows[0, ::2] = -0.0
    rows[1, ::3] = -torch.inf
    rows[2, :] = -torch.inf
    rows[2, 5] = 1.0
    rows[3] = torch.arange(v)
    rows[4] = -torch.arange(v)
    rows[5] *= 1e-44
    rows[6, 7] = torch.inf
    rows[7] = -rows[7].abs()
    for k in (1, 3, 64):
        (values, ids), (expected, expected_ids) = by_loops(rows, k), by_torch(rows, k)
        assert torch.equal(ids, expected_ids)
        assert torch.equal(values.view(torch.int32), expected.view(torch.int32))


def test_ids_of_what_is_no_number_are_ids_all_the_same():
    rows = logits_of(3, 300, "distinct")
    rows[0, :] = torch.nan
    rows[1, ::2] = torch.nan
    rows[2, 0] = torch.nan
    _, ids = by_loops(rows, 64)
    assert all(len(set(row)) == 64 and min(row) >= 0 and max(row) < 300 for row in ids.tolist())


def test_ties_across_the_cut_and_across_blocks_go_to_the_lower_ids():
    logits = torch.zeros(1, 64 * 400)
    logits[0, [64 * 399 + 5, 64 * 7 + 1, 64 * 7 + 2, 64 * 120]] = 3.0
    logits[0, 64 * 200] = 4.0
    _, ids = top_k(logits, 4)
    assert ids[0].tolist() == [64 * 200, 64 * 7 + 1, 64 * 7 + 2, 64 * 120]
    _, ids = top_k(logits, 8)
    assert ids[0].tolist() == [64 * 200, 64 * 7 + 1, 64 * 7 + 2, 64 * 120, 64 * 399 + 5, 0, 1, 2]


@pytest.mark.parametrize("policy", [KeepAll(), TopK(k=11), TopP(p=0.8, k=20), TopP(p=0.999999, k=4)])
@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_every_number_is_that_of_the_full_softmax(policy, kind):
    logits = logits_of(40, 300, kind)
    labels = torch.arange(40) - 3
    found = select(logits.clone(), labels.clamp(min=-1), policy, (1.0, 2.0, 0.5))
    exact = logits.double()
    logprobs = exact.log_softmax(1)
    np.testing.assert_allclose(found.logprobs, logprobs.gather(1, found.ids), atol=1e-5)
    for column, temperature in enumerate((1.0, 2.0, 0.5)):
        np.testing.assert_allclose(found.logsumexp[:, column], (exact / temperature).logsumexp(1), atol=1e-4)
    np.testing.assert_allclose(found.entropy, -(logprobs.exp() * logprobs).sum(1), atol=1e-4)
    assert found.label_logprob[:3].isnan().all()
    gold = logprobs[torch.arange(3, 40), torch.arange(37)]
    np.testing.assert_allclose(found.label_logprob[3:], gold, atol=1e-5)
    kept = torch.arange(found.ids.shape[1]) < found.counts[:, None]
    mass = (logprobs.gather(1, found.ids).exp() * kept).sum(1)
    np.testing.assert_allclose(found.kept_mass, mass, atol=1e-5)


@pytest.mark.parametrize(("p", "k"), [(0.5, 300), (0.9, 300), (0.9, 6), (1e-9, 5), (0.999, 64)])
def test_top_p_is_the_smallest_set_with_that_mass_capped(p, k):
    logits = logits_of(200, 300, "distinct") * 3
    found = select(logits.clone(), torch.full((200,), -1), TopP(p=p, k=k))
    descending = logits.double().softmax(1).sort(1, descending=True).values.cumsum(1)
    smallest = (descending < p).sum(1) + 1
    close = ((descending - p).abs() < 1e-6).any(1)
    assert torch.equal(found.counts[~close], smallest.clamp(max=k)[~close])
    assert close.sum() < 20


def test_one_sure_entry_is_kept_alone():
    logits = torch.full((1, 100), -1e4)
    logits[0, 33] = 0.0
    found = select(logits, torch.tensor([33]), TopP(p=0.99, k=64))
    assert (found.counts.item(), found.ids[0, 0].item(), found.entropy.item()) == (1, 33, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_position_that_is_not_finite_says_so_and_harms_no_other(bad):
    logits = logits_of(6, 64 * 40, "distinct")
    whole = select(logits.clone(), torch.zeros(6, dtype=torch.int64), TopP(p=0.9, k=9))
    logits[2, 1000] = bad
    found = select(logits, torch.zeros(6, dtype=torch.int64), TopP(p=0.9, k=9))
    fine = found.logsumexp[:, 0].isfinite() & found.entropy.isfinite()
    assert fine.tolist() == [True, True, False, True, True, True]
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one[fine], other[fine])
