"""Likelihoods of chunks to where a word begins: against plain sums over whole distributions, and cut for memory."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.losses.test_cross_tokenizer import (
    COLUMNS,
    EDGES,
    GOLD,
    M,
    V,
    logits,
    targets_of,
    term,
    theirs,
    whole,
)
from trainer.losses.aligned_targets import AlignedTargets
from trainer.losses.fused import fused_loss
from trainer.losses.objective import aligned_losses
from trainer.models.heads import Head, LogitTransform

__all__ = ["logits", "theirs"]  # fixtures
WORDS = torch.tensor([2, 3, 11])
KNOWN = torch.tensor([0.5, torch.nan, 0.05, 1.0, torch.nan, 0.3]).log()
TAU = 10.0


def targets(theirs: Tensor, known: Tensor = KNOWN) -> AlignedTargets:
    """Chunks behind some of which the teacher says how likely a word begins."""
    number = len(EDGES) - 1
    found = targets_of(EDGES, whole(theirs[:number]), theirs[:number, 0] - 1, COLUMNS, GOLD)
    return replace(found, words=WORDS, word_start=known)


def binary(ours: Tensor, teacher: Tensor) -> Tensor:
    p, q = (teacher / TAU).exp(), (ours / TAU).exp()
    return TAU * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())


@pytest.mark.parametrize("least", [0.0, 0.1, 0.4, 1.0])
def test_both_likelihoods_have_the_mass_of_a_words_begin(
    logits: Tensor, theirs: Tensor, least: float
) -> None:
    log_q, q = logits.log_softmax(-1)[torch.arange(M), GOLD], logits.softmax(-1)
    told = targets(theirs)
    expected = []
    for number, (first, last) in enumerate(itertools.pairwise(EDGES)):
        ours, teacher = log_q[first:last].sum(), told.teacher[number]
        mass = KNOWN[number].exp().item()
        if mass > least:
            ours = ours + sum(q[last, word] for word in WORDS).log()
            teacher = teacher + KNOWN[number]
        expected.append(binary(ours, teacher))
    torch.testing.assert_close(term("alm", logits, told, tau=TAU, word=least), torch.stack(expected))


def test_with_equal_tokenizers_and_teachers_it_is_nothing(theirs: Tensor) -> None:
    """A student that says what the teacher says has no loss and no gradient, with the mass or without."""
    log_p = theirs[torch.arange(M), GOLD]
    teacher = torch.stack([log_p[a:b].sum() for a, b in itertools.pairwise(EDGES)])
    mass = torch.stack([theirs[b, WORDS].logsumexp(-1) for b in EDGES[1:]])
    ours = (theirs + 3).requires_grad_()
    found = term("alm", ours, replace(targets(theirs, mass), teacher=teacher), tau=TAU, word=0.0)
    torch.testing.assert_close(found, torch.zeros(len(mass), dtype=torch.float64), atol=1e-12, rtol=0)
    found.sum().backward()
    assert ours.grad is not None
    assert ours.grad.abs().max() < 1e-9


@pytest.mark.parametrize("elements", [1, V * 3, V * 8, V * 1000])
def test_cutting_for_memory_changes_nothing(logits: Tensor, theirs: Tensor, elements: int) -> None:
    """What is behind a chunk is in the next piece: it is seen from both."""
    told, names = targets(theirs, torch.full((len(EDGES) - 1,), 0.4).log()), ("alm", "projected_kl", "ce")
    torch.manual_seed(5)
    hidden = torch.randn(M, 8, dtype=torch.float64)
    weight, bias = torch.randn(V, 8, dtype=torch.float64), torch.randn(V, dtype=torch.float64)
    found = []
    for limit, reach in ((None, 0), (elements, 1)):
        h, w, b = (each.clone().requires_grad_() for each in (hidden, weight, bias))
        if limit is None:
            terms = aligned_losses(names, h @ w.T + b, told)
            loss = (terms * torch.tensor([1.0, 0.5, 0.3])).sum()
        else:
            fused = fused_loss(
                h,
                Head(weight=w, bias=b, transform=LogitTransform()),
                lambda z, first, last: aligned_losses(names, z, told.part(first, last)),
                torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64),
                chunk_elements=limit,
                cuts=told.host.cuts(M),
                reach=reach,
            )
            terms, loss = fused.terms, fused.loss
        loss.backward()
        found.append((terms.detach(), h.grad, w.grad, b.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_without_the_reach_a_piece_would_not_see_behind_its_last_chunk(theirs: Tensor) -> None:
    told = targets(theirs, torch.full((len(EDGES) - 1,), 0.4).log())
    part = told.part(0, EDGES[3])
    assert int(part.ends[-1]) == len(part.gold) == EDGES[3]
    with pytest.raises(IndexError):
        aligned_losses(("alm",), torch.zeros(len(part.gold), V), part)
    assert np.isfinite(aligned_losses(("alm",), torch.zeros(len(part.gold) + 1, V), part).item())
