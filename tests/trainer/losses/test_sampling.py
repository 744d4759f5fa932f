"""A cache that draws its entries costs a student no bias: through collation and the fused loss, the expectation over
all draws is the dense gradient; and what would bias it (dividing by the sum, weighing otherwise) is seen here."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.policies import Sampled, Threshold
from schemas.rows.rows import Rows
from tests.trainer.draws import (
    SMALL,
    Position,
    enumerated,
    every_draw,
    log_softmax,
    rows_of_draws,
    sampling_spec,
    shaped,
)
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.losses.divergences import kl_divergence
from trainer.losses.fused import fused_loss
from trainer.losses.objective import position_losses
from trainer.losses.targets import SparseTargets
from trainer.models.heads import Head, LogitTransform


def fused_gradient(batch: Batch, weights: Tensor, hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """The gradient in the head's weights of the weighted sum of the positions' KL, in chunks of three positions."""
    head = head.clone().requires_grad_()

    def terms(logits: Tensor, first: int, last: int) -> Tensor:
        entries = slice(int(batch.entry_offsets[first]), int(batch.entry_offsets[last]))
        assert isinstance(batch.targets, SparseTargets)
        part = batch.targets.chunk(first, last, entries)
        found = position_losses(["kl"], logits, part, temperature=temperature, score="softmax")
        return (found * weights[first:last]).sum(-1)

    states = hidden.expand(len(batch.row), -1)
    one = torch.ones(1, dtype=torch.float64)
    whole = Head(weight=head, bias=None, transform=LogitTransform())
    fused_loss(states, whole, terms, one, chunk_elements=3 * len(head)).loss.backward()
    assert head.grad is not None
    return head.grad


def dense_gradient(logits: np.ndarray, hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    head = head.clone().requires_grad_()
    teacher = (torch.from_numpy(logits) / temperature).log_softmax(-1)
    student = (hidden @ head.t() / temperature).log_softmax(-1)
    loss = (teacher.exp() * (teacher - student)).sum() * temperature**2
    (grad,) = torch.autograd.grad(loss, head)
    return grad


def student_of(vocab_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((1, 4), (vocab_size, 4))
    hidden, head = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return hidden, head


def expectation_of(rows: Rows, shares: np.ndarray, temperature: float, change: Any = lambda b: b) -> Tensor:
    batch = Collation(student_vocab=rows.spec.vocab_size, pad_id=0, temperature=temperature).batch(rows)
    weights = torch.from_numpy(shares[batch.input_ids[:, 0].numpy()])
    return fused_gradient(change(batch), weights, *student_of(rows.spec.vocab_size), temperature)


CASES = [
    (scale, tau, k, temperatures)
    for scale in (0.3, 1.5, 4.0)
    for tau, k in ((1 / 4, 1), (1 / 8, 1), (1 / 8, 5))
    for temperatures in ((1.0,), (1.0, 2.0))
]


@pytest.mark.parametrize(("scale", "tau", "k", "temperatures"), CASES)
def test_the_expected_gradient_of_threshold_is_the_dense_one(
    scale: float, tau: float, k: int, temperatures: tuple[float, ...]
) -> None:
    rows, shares = enumerated(scale, tau, k, temperatures)
    for temperature in temperatures:
        found = expectation_of(rows, shares, temperature)
        dense = dense_gradient(shaped(scale), *student_of(SMALL), temperature)
        torch.testing.assert_close(found, dense, atol=1e-3, rtol=0)


def test_dividing_by_the_sum_would_be_seen() -> None:
    rows, shares = enumerated(1.5, 1 / 4, 1, (1.0,))

    def divided(batch: Batch) -> Batch:
        targets = batch.targets
        assert isinstance(targets, SparseTargets)
        mass = torch.zeros(len(targets.tail)).index_add(0, targets.position, targets.weights)
        weights = targets.weights / mass[targets.position]
        return replace(batch, targets=replace(targets, weights=weights))

    dense = dense_gradient(shaped(1.5), *student_of(SMALL), 1.0)
    wrong = expectation_of(rows, shares, 1.0, divided)
    assert (wrong - dense).abs().max() > 1e-2


def test_the_expected_gradient_of_draws_is_the_dense_one() -> None:
    """All 5^3 sequences of 3 draws from 5 ids, each with its probability."""
    spec, logits = sampling_spec(Sampled(n=3), 5), shaped(1.0, 5)
    sequences = list(itertools.product(range(5), repeat=3))
    probs = np.exp(log_softmax(logits))
    shares = np.array([probs[list(s)].prod() for s in sequences])
    draws = [Position([], sorted(set(s)), [s.count(i) for i in sorted(set(s))]) for s in sequences]
    found = expectation_of(rows_of_draws(logits, draws, spec), shares, 1.0)
    torch.testing.assert_close(found, dense_gradient(logits, *student_of(5), 1.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "is_kl"),
    [
        ({}, True),
        ({"scalars": ("gold",), "own_logits": True}, True),
        ({"scalars": ("gold",)}, False),
    ],
)
def test_the_expected_value_is_the_kl_where_the_entropy_is_known(
    changes: dict[str, Any], is_kl: bool
) -> None:
    """It is the cross entropy where it is not."""
    logits, spec = shaped(1.5), sampling_spec(Threshold(tau=1 / 4), **changes)
    draws, shares = every_draw(logits, spec)
    batch = Collation(student_vocab=SMALL, pad_id=0).batch(rows_of_draws(logits, draws, spec))
    student = torch.from_numpy(shaped(1.0)[::-1].copy())
    assert isinstance(batch.targets, SparseTargets)
    each = kl_divergence(student.expand(len(draws), -1), batch.targets, 1.0)
    found = (each * torch.from_numpy(shares[batch.input_ids[:, 0].numpy()])).sum().item()
    teacher = torch.from_numpy(logits).log_softmax(-1)
    cross = -(teacher.exp() * student.log_softmax(-1)).sum().item()
    kl = cross + (teacher.exp() * teacher).sum().item()
    assert found == pytest.approx(kl if is_kl else cross, abs=1e-3)


def test_the_gradient_is_that_of_the_weights_as_they_are() -> None:
    """`W q - w`, whatever W is."""
    weights = torch.tensor([0.7, 0.25, 0.25, 0.125], dtype=torch.float64)
    targets = SparseTargets(
        ids=torch.tensor([4, 0, 2, 2]),
        counts=torch.tensor([3, 1]),
        weights=weights,
        logprobs=weights.log(),
        logits=None,
        tail=torch.zeros(2),
        negentropy=torch.zeros(2),
        gold=torch.zeros(2, dtype=torch.int64),
    )
    z = torch.from_numpy(shaped(1.5).reshape(2, 6)).requires_grad_()
    kl_divergence(z, targets, 1.0).sum().backward()
    dense = torch.zeros(2, 6, dtype=torch.float64)
    dense[targets.position, targets.ids] = weights
    expected = dense.sum(1, keepdim=True) * z.detach().softmax(-1) - dense
    torch.testing.assert_close(z.grad, expected)
    assert torch.autograd.gradcheck(lambda y: kl_divergence(y, targets, 2.0), z)


def test_a_threshold_that_keeps_all_is_dense() -> None:
    logits, student = shaped(1.5), torch.from_numpy(shaped(1.0)[::-1].copy())[None]
    spec = sampling_spec(Threshold(tau=1 / 4, k=SMALL))
    draws, shares = every_draw(logits, spec)
    assert len(shares) == 1
    batch = Collation(student_vocab=SMALL, pad_id=0).batch(rows_of_draws(logits, draws, spec))
    assert isinstance(batch.targets, SparseTargets)
    teacher = torch.from_numpy(logits).log_softmax(-1)
    dense = (teacher.exp() * (teacher - student.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(kl_divergence(student, batch.targets, 1.0), dense, atol=1e-3, rtol=0)
