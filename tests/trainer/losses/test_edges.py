"""Laws of every loss on the head where numbers run out: sure students, ids ruled out, positions without any."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.trainer.losses.test_laws import HEAD, TAILED, N, V, found_of, logits, targets_of
from trainer.losses.cross_tokenizer import chunk_likelihoods
from trainer.losses.registry import LOSSES
from trainer.losses.targets import NO_LABEL


@pytest.mark.parametrize("name", HEAD)
def test_masked_positions_zero_probabilities_and_padded_ids_give_no_nan(name: str) -> None:
    """Float32: a position without entries, one without a label, p of 0, q of 0, a sure student, -inf logits."""
    teacher = logits(0).float()
    teacher[2, 1:] = -torch.inf
    teacher[3, 4:] = -200.0
    student = logits(1).float()
    student[0, 1] = 500.0
    student[1, :] = 0.0
    student[2, 5] = -torch.inf
    student[4] *= 1e4
    for k in (1, 4, V):
        targets = targets_of(teacher, k)
        targets = replace(targets, gold=targets.gold.clone().index_fill(0, torch.tensor([1]), NO_LABEL))
        keep = targets.position != 5
        targets = replace(
            targets,
            ids=targets.ids[keep],
            counts=targets.counts.index_fill(0, torch.tensor([5]), 0),
            weights=targets.weights[keep],
            logprobs=targets.logprobs[keep],
            logits=None if targets.logits is None else targets.logits[keep],
            tail=targets.tail.clone().index_fill(0, torch.tensor([5]), 1.0),
            negentropy=targets.negentropy.clone().index_fill(0, torch.tensor([5]), 0.0),
        )
        for temperature in (1.0, 2.0):
            z = student.clone().requires_grad_()
            found = found_of(name, z, targets, temperature)
            assert not found.isnan().any(), (name, k, found)
            found.clamp(-1e30, 1e30).sum().backward()
            assert not z.grad.isnan().any(), (name, k, z.grad)
            if LOSSES[name].per == "labelled":
                assert found[1] == 0
                assert not z.grad[1].any()


OF_LOG_RATIOS = ("rkl", "ce_symmetric")


@pytest.mark.parametrize("k", [4, V])
@pytest.mark.parametrize("name", HEAD)
def test_a_student_that_is_nearly_sure_has_its_gradient_in_float32(name: str, k: int) -> None:
    """But for the rounding of a probability near 1, which cross entropy's own gradient has too; where it is multiplied
    by a ratio's logarithm, of some 14 nats, which way it is rounded depends on the processor."""
    teacher, student = logits(0), logits(1)
    targets = targets_of(teacher, k)
    student[torch.arange(N), targets.gold] = student.amax(-1) + 12
    gradients = []
    for dtype in (torch.float64, torch.float32):
        z = student.to(dtype, copy=True).requires_grad_()
        found_of(name, z, targets).sum().backward()
        gradients.append(z.grad.double())
    exact, found = gradients
    rounding = 14 * torch.finfo(torch.float32).eps if name in OF_LOG_RATIOS else 5e-7
    assert (found - exact).abs().max() <= 1e-4 * exact.abs().max() + rounding


@pytest.mark.parametrize("tail", ["bucket", "ignore", "uniform"])
@pytest.mark.parametrize("k", [4, V])
@pytest.mark.parametrize("name", TAILED)
def test_an_id_that_the_student_rules_out(name: str, k: int, tail: str) -> None:
    """Its logit is -inf: the loss is finite where the id is not kept, and its gradient a number."""
    teacher, student = logits(0), logits(1)
    teacher[:, 2] = -8.0
    student[:, 2] = -torch.inf
    targets, z = targets_of(teacher, k), student.requires_grad_()
    found = found_of(name, z, targets, tail=tail)
    assert found.isfinite().all(), found
    found.sum().backward()
    assert not z.grad.isnan().any()


@pytest.mark.parametrize("name", ["pld", "bild", "akl"])
def test_what_the_teacher_gives_the_same_ranks_as_the_cache_has_it(name: str) -> None:
    """Its codes are rounded, and it keeps the likeliest first: the ranking before they were."""
    width = 64
    teacher = logits(0, rows=2, width=width).sort(-1, descending=True).values / 1e12
    targets = targets_of(teacher, width)
    flat = torch.full_like(targets.weights, 1 / width)
    equal = replace(targets, weights=flat, logprobs=flat.log())
    student = logits(1, rows=2, width=width)
    torch.testing.assert_close(found_of(name, student, equal), found_of(name, student, targets))


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("name", HEAD)
def test_one_class_one_position(name: str, width: int) -> None:
    teacher, student = logits(0, rows=1, width=width), logits(1, rows=1, width=width).requires_grad_()
    targets = replace(targets_of(teacher, width), gold=torch.zeros(1, dtype=torch.int64))
    found = found_of(name, student, targets)
    found.sum().backward()
    assert found.isfinite().all()
    assert student.grad.isfinite().all()


def test_a_text_that_the_teacher_rules_out_is_pushed_away_and_no_other_chunk_with_it() -> None:
    ours = torch.tensor([-3.0, -2.0], dtype=torch.float64)
    theirs = torch.tensor([-torch.inf, -1.0], dtype=torch.float64)
    for tau in (1.0, 100.0):
        ruled_out, plain = chunk_likelihoods(ours, theirs, tau)
        torch.testing.assert_close(ruled_out, -tau * torch.log(-torch.expm1(ours[0] / tau)))
        torch.testing.assert_close(plain, chunk_likelihoods(ours[1:], theirs[1:], tau)[0])
