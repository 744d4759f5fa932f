"""The losses for another tokenizer: what they are with equal ones, by their formulas, and how they are cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.rows.ragged import offsets_of
from trainer.losses.aligned_targets import NO_CHUNK, AlignedScores, AlignedTargets, HostChunks
from trainer.losses.cross_tokenizer import chunk_likelihoods
from trainer.losses.divergences import kl_divergence
from trainer.losses.fused import chunks, fused_loss
from trainer.losses.objective import aligned_losses
from trainer.losses.registry import LOSSES
from trainer.losses.targets import SparseTargets
from trainer.models.heads import Head, LogitTransform

M, V = 40, 17


def whole(logprobs: Tensor, *, drawn: bool = False, weights: Tensor | None = None) -> SparseTargets:
    """Every id of each position, or those with a weight."""
    weights = logprobs.exp() if weights is None else weights
    position, ids = weights.nonzero(as_tuple=True)
    kept = weights[position, ids]
    tail = torch.zeros(len(logprobs)) if drawn else (1 - weights.sum(-1)).clamp_min(0)
    tail = torch.where(tail < 1e-6, 0, tail)
    return SparseTargets(
        kept_ids=ids,
        counts=position.bincount(minlength=len(logprobs)),
        weights=kept,
        logprobs=logprobs[position, ids],
        logits=None,
        tail=tail,
        negentropy=(kept * kept.log()).new_zeros(len(logprobs)).index_add(0, position, kept * kept.log())
        + torch.xlogy(tail, tail),
        gold=torch.zeros(len(logprobs), dtype=torch.int64),
        drawn=drawn,
    )


def targets_of(
    edges: list[int], starts: SparseTargets, teacher: Tensor, columns: list[list[int]], gold: Tensor
) -> AlignedTargets:
    """Chunks between the edges, one after the other, of which the last ends before the last token."""
    begins, ends = np.array(edges[:-1]), np.array(edges[1:])
    chunk = np.full(len(gold), NO_CHUNK, np.int64)
    for number, (first, last) in enumerate(zip(begins, ends, strict=True)):
        chunk[first:last] = number
    counts = np.array([len(columns[index]) for index in starts.ids.tolist()], np.int64)
    per_chunk = np.bincount(starts.position.numpy(), minlength=len(begins))
    return AlignedTargets(
        gold=gold,
        chunk=torch.from_numpy(chunk),
        begins=torch.from_numpy(begins),
        teacher=teacher,
        num_bytes=torch.ones(len(begins), dtype=torch.int64),
        ends=torch.from_numpy(ends),
        word_start=torch.full((len(begins),), torch.nan),
        words=torch.zeros(0, dtype=torch.int64),
        starts=starts,
        pair_entry=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        pair_id=torch.tensor([s for index in starts.ids.tolist() for s in columns[index]], dtype=torch.int64),
        host=HostChunks(begins=begins, ends=ends, entries=offsets_of(per_chunk), pairs=offsets_of(counts)),
    )


@pytest.fixture
def logits() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(M, V, dtype=torch.float64) * 2


@pytest.fixture
def theirs() -> Tensor:
    torch.manual_seed(1)
    return (torch.randn(M, V, dtype=torch.float64) * 2).log_softmax(-1)


GOLD = torch.arange(M) * 7 % V
IDENTITY = [[index] for index in range(V)]


def term(name: str, logits: Tensor, targets: AlignedTargets, **settings: Any) -> Tensor:
    compute = LOSSES[name].aligned
    assert compute is not None
    return compute(AlignedScores(logits, targets), {**LOSSES[name].defaults, **settings})


def equal(theirs: Tensor, **changes: Any) -> AlignedTargets:
    """As with equal tokenizers: each token is a chunk."""
    gold = theirs[torch.arange(M), GOLD]
    return targets_of([*range(M + 1)], whole(theirs, **changes), gold, IDENTITY, GOLD)


@pytest.mark.parametrize("tau", [1.0, 5.0, 100.0])
def test_with_equal_tokenizers_alm_is_the_binary_cross_entropy_of_the_gold_id(
    logits: Tensor, theirs: Tensor, tau: float
) -> None:
    p = theirs[torch.arange(M), GOLD].exp() ** (1 / tau)
    q = logits.softmax(-1)[torch.arange(M), GOLD] ** (1 / tau)

    def entropy(other: Tensor) -> Tensor:
        return -(p * other.log() + (1 - p) * (1 - other).log())

    expected = tau * (entropy(q) - entropy(p))
    torch.testing.assert_close(term("alm", logits, equal(theirs), tau=tau), expected)


@pytest.mark.parametrize("cut", [V, 5])
@pytest.mark.parametrize("drawn", [False, True])
def test_with_equal_tokenizers_projected_kl_is_kl(
    logits: Tensor, theirs: Tensor, cut: int, drawn: bool
) -> None:
    weights = theirs.exp()
    weights = torch.where(weights >= weights.sort(-1, descending=True).values[:, [cut - 1]], weights, 0)
    targets = equal(theirs, weights=weights, drawn=drawn)
    expected = kl_divergence(logits, targets.starts, 1.0)
    torch.testing.assert_close(term("projected_kl", logits, targets), expected)


def test_ce_is_that_of_every_token_in_a_chunk_or_not(logits: Tensor, theirs: Tensor) -> None:
    targets = targets_of([3, 5, 9], whole(theirs[:2]), torch.zeros(2), IDENTITY, GOLD)
    expected = torch.nn.functional.cross_entropy(logits, GOLD, reduction="none")
    torch.testing.assert_close(term("ce", logits, targets), expected)


EDGES = [2, 3, 7, 8, 20, 21, 33]


def test_alm_sums_a_chunks_tokens_before_it_compares(logits: Tensor, theirs: Tensor) -> None:
    log_q = logits.log_softmax(-1)[torch.arange(M), GOLD]
    ours = torch.stack([log_q[a:b].sum() for a, b in itertools.pairwise(EDGES)])
    teacher = ours.detach() * torch.linspace(0.5, 1.5, len(ours))
    targets = targets_of(EDGES, whole(theirs[: len(ours)]), teacher, IDENTITY, GOLD)
    tau = 10.0
    p, q = (teacher / tau).exp(), (ours / tau).exp()
    expected = tau * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    torch.testing.assert_close(term("alm", logits, targets, tau=tau), expected)


def test_alm_is_nothing_where_both_agree_and_has_no_infinity_where_either_is_sure() -> None:
    same = torch.tensor([-1e-3, -0.3, -2.0, -50.0, -500.0], dtype=torch.float64)
    torch.testing.assert_close(chunk_likelihoods(same, same, 3.0), torch.zeros(5, dtype=torch.float64))
    for ours in (0.0, -1e-9, -1e3):
        for theirs in (0.0, -1e-9, -1e3):
            value = torch.tensor([ours], requires_grad=True)
            found = chunk_likelihoods(value, torch.tensor([theirs]), 1.0)
            found.sum().backward()
            assert torch.isfinite(found).all()
            assert value.grad is not None
            assert torch.isfinite(value.grad).all()


def test_a_large_tau_leaves_the_gradient_its_size() -> None:
    ours = torch.tensor([-2.0, -5.0], dtype=torch.float64, requires_grad=True)
    chunk_likelihoods(ours, torch.tensor([-1.0, -6.0]), 1e5).sum().backward()
    torch.testing.assert_close(ours.grad, -(1 - torch.tensor([0.5, 1.2])).double(), rtol=1e-3, atol=1e-3)


COLUMNS = [[0, 3], [1], [], [2, 3, 4], [5], [6], [7, 0], *([index] for index in range(8, 17)), []]


@pytest.mark.parametrize("kept", [V, 6])
def test_projected_kl_is_that_of_a_dense_map(logits: Tensor, theirs: Tensor, kept: int) -> None:
    number = len(EDGES) - 1
    weights = theirs[:number].exp()
    weights = torch.where(weights >= weights.sort(-1, descending=True).values[:, [kept - 1]], weights, 0)
    starts = whole(theirs[:number], weights=weights)
    targets = targets_of(EDGES, starts, torch.zeros(number), COLUMNS, GOLD)
    entropy = torch.xlogy(weights, weights).sum(-1) + torch.xlogy(starts.tail, starts.tail)

    def formula(values: Tensor) -> Tensor:
        return entropy + _by_log(values, weights, starts.tail)

    torch.testing.assert_close(term("projected_kl", logits, targets), formula(logits))
    ours, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    term("projected_kl", ours, targets).sum().backward()
    formula(other).sum().backward()
    torch.testing.assert_close(ours.grad, other.grad)
    plain = term("projected_kl", logits, targets, tail="ignore")
    w = _map(logits.dtype)
    q = logits[EDGES[:-1]].softmax(-1) @ w.T
    expected = entropy - (weights * torch.where(q > 0, q, 1).log()).sum(-1)
    torch.testing.assert_close(plain, expected)


def _map(dtype: torch.dtype) -> Tensor:
    w = torch.zeros(V, V, dtype=dtype)
    for i, column in enumerate(COLUMNS):
        w[i, column] = 1
    return w


def _by_log(logits: Tensor, weights: Tensor, tail: Tensor) -> Tensor:
    """-sum w log (W q) - (tail and what agrees with nothing) log of the q that agree with no kept one."""
    w = _map(logits.dtype)
    q = logits[EDGES[:-1]].softmax(-1)
    projected = q @ w.T
    kept = (weights * torch.where(projected > 0, projected, 1).log()).sum(-1)
    covered = ((weights > 0).to(q.dtype) @ w) > 0
    missed = torch.where(projected > 0, 0, weights).sum(-1)
    rest = torch.where(covered, 0, q).sum(-1)
    return -kept - (tail + missed) * torch.where(rest > 0, rest, 1).log()


def test_draws_give_the_whole_distributions_gradient_in_expectation(logits: Tensor, theirs: Tensor) -> None:
    """Linear in p: each id is kept with probability p / tau and weighs tau, else p; their mean is p."""
    number = len(EDGES) - 1
    flat = (theirs / 3).log_softmax(-1)
    p, tau, runs = flat[:number].exp(), 0.2, 2000
    generator = torch.Generator().manual_seed(3)
    sums = torch.zeros(M, V, dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for _ in range(runs):
        kept = torch.rand(p.shape, generator=generator, dtype=p.dtype) < p / tau
        weights = torch.where(p >= tau, p, torch.where(kept, tau, 0.0))
        drawn = whole(flat[:number], weights=weights, drawn=True)
        targets = targets_of(EDGES, drawn, torch.zeros(number), COLUMNS, GOLD)
        values = logits.clone().requires_grad_()
        term("projected_kl", values, targets).sum().backward()
        assert values.grad is not None
        sums, squares = sums + values.grad, squares + values.grad**2
    exact = logits.clone().requires_grad_()
    whole_p = whole(flat[:number], drawn=True)
    term(
        "projected_kl", exact, targets_of(EDGES, whole_p, torch.zeros(number), COLUMNS, GOLD)
    ).sum().backward()
    mean = sums / runs
    error = ((squares / runs - mean**2) / runs).sqrt()
    assert exact.grad is not None
    worst = ((mean - exact.grad).abs() / error.clamp_min(1e-9)).max().item()
    assert worst < 5


@pytest.mark.parametrize("elements", [1, V * 3, V * 8, V * 1000])
def test_cutting_for_memory_changes_nothing(logits: Tensor, theirs: Tensor, elements: int) -> None:
    number = len(EDGES) - 1
    targets = targets_of(EDGES, whole(theirs[:number]), theirs[:number, 0] - 1, COLUMNS, GOLD)
    names = ("alm", "projected_kl", "ce")
    torch.manual_seed(5)
    hidden = torch.randn(M, 8, dtype=torch.float64)
    weight = torch.randn(V, 8, dtype=torch.float64)
    found = []
    for limit, cuts in ((V * 1000, None), (elements, targets.host.cuts(M))):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        head = Head(weight=w, bias=None, transform=LogitTransform())
        loss = fused_loss(
            h,
            head,
            lambda z, first, last: aligned_losses(names, z, targets.part(first, last)),
            torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64),
            chunk_elements=limit,
            cuts=cuts,
        )
        loss.loss.backward()
        found.append((loss.terms, h.grad, w.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_no_cut_falls_within_a_chunk_and_pieces_are_as_long_as_they_may_be() -> None:
    begins, ends = np.array([0, 2, 6, 20]), np.array([2, 6, 20, 21])
    host = HostChunks(begins=begins, ends=ends, entries=np.zeros(5, np.int64), pairs=np.zeros(1, np.int64))
    cuts = host.cuts(24)
    assert cuts.tolist() == [0, 2, 6, 20, 21, 22, 23, 24]
    assert list(chunks(24, V, 3 * V, cuts)) == [(0, 2), (2, 6), (6, 20), (20, 23), (23, 24)]
    assert list(chunks(24, V, 100 * V, cuts)) == [(0, 24)]
    assert (
        list(
            chunks(
                0,
                V,
                V,
                HostChunks(begins=begins[:0], ends=ends[:0], entries=cuts[:1], pairs=cuts[:1]).cuts(0),
            )
        )
        == []
    )
