"""Rows with classes of their own: every loss is what it is over a vocabulary of a row's classes alone."""

from dataclasses import fields, replace

import pytest
import torch

from tests.trainer.losses.test_laws import HEAD, TAILED, found_of, logits, targets_of
from trainer.losses.registry import LOSSES
from trainer.losses.serving import WHOLE
from trainer.losses.targets import SparseTargets

V = 11
OWN = [[0, 3, 4, 5, 6], [0, 2, 3], [5, 6, 7, 8, 9, 10], [0, 1]]
"""Classes of four positions, of as many numbers."""


def narrow(at, k):
    """One position over its classes alone: student and targets."""
    width = len(OWN[at])
    return logits(at + 10, rows=1, width=width), targets_of(
        logits(at, rows=1, width=width), min(k, width), 2.0
    )


def together(k):
    """All of them over V: what is no class has the largest logits of all, which must not matter."""
    wide = torch.full((len(OWN), V), 50.0, dtype=torch.float64)
    parts = []
    for at, own in enumerate(OWN):
        student, targets = narrow(at, k)
        wide[at, own] = student[0]
        ids = torch.tensor(own)
        parts.append(
            replace(
                targets,
                ids=ids[targets.ids],
                gold=ids[targets.gold],
                classes=torch.isin(torch.arange(V), ids)[None],
            )
        )
    joined = {}
    for field in fields(SparseTargets):
        values = [getattr(part, field.name) for part in parts]
        joined[field.name] = torch.cat(values) if isinstance(values[0], torch.Tensor) else values[0]
    return wide, SparseTargets(**joined)


CASES = [(name, k, {}) for name in HEAD for k in (2, V) if k == V or LOSSES[name].kind is not WHOLE]
CASES += [(name, 2, {"tail": tail}) for name in TAILED for tail in ("ignore", "uniform")]


@pytest.mark.parametrize(("name", "k", "settings"), CASES)
def test_a_loss_is_that_over_the_classes_alone(name, k, settings):
    student, targets = together(k)
    student.requires_grad_()
    found = found_of(name, student, targets, 2.0, **settings)
    found.sum().backward()
    for at, own in enumerate(OWN):
        alone, theirs = narrow(at, k)
        alone.requires_grad_()
        expected = found_of(name, alone, theirs, 2.0, **settings)
        expected.sum().backward()
        torch.testing.assert_close(found[at : at + 1], expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(student.grad[at, own], alone.grad[0], atol=1e-9, rtol=1e-9)
    others = ~targets.classes
    assert not student.grad[others].any()


def test_scores_of_fewer_tokens_than_v_are_enough():
    student, targets = together(V)
    some, part = student[:2, :7], targets.part(slice(0, 2), slice(0, len(OWN[0]) + len(OWN[1])))
    torch.testing.assert_close(found_of("kl", some, part, 2.0), found_of("kl", student, targets, 2.0)[:2])
