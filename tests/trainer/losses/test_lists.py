"""Losses over lists against the textbook, list by list; and the metrics of their order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.errors import StudentError
from schemas.tasks import TASKS
from tests.synthetic import SPECS
from trainer.losses.objective import Objective, position_losses
from trainer.losses.targets import DenseTargets
from trainer.metrics.lists import _of_list

SIZES = (3, 1, 5, 2)
ROW = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))


def scores(seed: int) -> Tensor:
    return torch.randn(len(ROW), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def found_of(name: str, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    targets = DenseTargets(
        logits=teacher, gold=torch.zeros_like(teacher), labelled=torch.zeros(len(teacher)) > 0, row=ROW
    )
    return position_losses([name], student, targets, temperature=temperature, score="identity")[0]


def lists(values: Tensor) -> tuple[Tensor, ...]:
    return torch.split(values[:, 0], SIZES)


def test_margins_are_those_of_every_pair() -> None:
    student, teacher = scores(0), scores(1)
    found = torch.split(found_of("margin_mse", student, teacher), SIZES)
    for ours, s, t in zip(found, lists(student), lists(teacher), strict=True):
        for i in range(len(s)):
            others = [((s[i] - s[j]) - (t[i] - t[j])) ** 2 for j in range(len(s)) if j != i]
            expected = torch.stack(others).mean() if others else torch.zeros(())
            torch.testing.assert_close(ours[i], expected.double(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_list_is_one_distribution(temperature: float) -> None:
    student, teacher = scores(0), scores(1)
    found = torch.split(found_of("listwise_kl", student, teacher, temperature), SIZES)
    for ours, s, t in zip(found, lists(student), lists(teacher), strict=True):
        expected = F.kl_div(
            (s / temperature).log_softmax(0),
            (t / temperature).log_softmax(0),
            log_target=True,
            reduction="sum",
        )
        torch.testing.assert_close(ours.sum(), expected * temperature**2)


@pytest.mark.parametrize("name", ["margin_mse", "listwise_kl"])
def test_gradients_and_what_does_not_matter(name: str) -> None:
    student, teacher = scores(0).requires_grad_(), scores(1)
    assert torch.autograd.gradcheck(lambda z: found_of(name, z, teacher), student)
    moved = torch.cat([part + 5 * i for i, part in enumerate(torch.split(teacher, SIZES))])
    zero = found_of(name, moved, teacher)
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-9, rtol=0)
    huge = found_of(name, student.detach() + 1e4, teacher + 1e4)
    torch.testing.assert_close(huge, found_of(name, student, teacher).detach(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["margin_mse", "listwise_kl"])
def test_single_texts_have_no_lists(name: str) -> None:
    with pytest.raises(StudentError, match="rows are single texts"):
        Objective.parse([name]).check(SPECS["regression"])
    Objective.parse([name]).check(SPECS["pairs"])
    assert [task.name for task in TASKS.values() if task.holds_texts] == ["pair-score"]


def test_orders_are_counted_by_hand() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 3, 6, 15):
        ours, theirs, gold = (
            rng.normal(size=size),
            rng.normal(size=size),
            rng.integers(0, 3, size).astype(float),
        )
        gold[0] = 2
        found = _of_list(ours, theirs, gold)
        pairs = [*itertools.combinations(range(size), 2)]
        same = [(ours[i] > ours[j]) == (theirs[i] > theirs[j]) for i, j in pairs]
        assert found["order_agreement"] == pytest.approx(np.mean(same))
        assert found["first_agreement"] == float(ours.argmax() == theirs.argmax())
        for name, order in (("ndcg", ours), ("teacher_ndcg", theirs)):
            discounts = 1 / np.log2(np.arange(2, size + 2))
            discounts[10:] = 0
            best = np.sort(gold)[::-1] @ discounts
            assert found[name] == pytest.approx(gold[np.argsort(-order)] @ discounts / best)
        assert _of_list(theirs, theirs, None)["ndcg_with_teacher"] == pytest.approx(1.0)
    assert _of_list(ours[:1], theirs[:1], None) == {}
    assert "ndcg" not in _of_list(ours, theirs, np.zeros(15))
    assert _of_list(np.zeros(2), np.array([1.0, 2.0]), None)["order_agreement"] == 0.5
