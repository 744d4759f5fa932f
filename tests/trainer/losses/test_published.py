"""Values and gradients that other libraries' own code gave of fixed inputs, in float64: torchdistill 1.1.3 (`KDLoss`,
`DISTLoss`, `LogitStdKDLoss`, `RKDLoss`) and TRL 0.29.0 (`generalized_jsd_loss` of its GKD trainer).

Neither is a dependency: torchdistill asks for torchvision, TRL for datasets. TRL leaves out the square of the
temperature. torchdistill's `SPKDLoss` is not here: it divides the rows of a Gram matrix by their sums of absolute
values, where the paper and its authors' code divide by their lengths, as `similarity` does.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.trainer.losses.test_losses import sparse
from tests.trainer.losses.test_pooled import found_of
from trainer.losses.loss import Pooled
from trainer.losses.objective import Objective, position_losses

V = 11
GRID = torch.arange(5 * V, dtype=torch.float64).view(5, V)
TEACHER, STUDENT = 3 * torch.sin(GRID * 1.7), 3 * torch.cos(GRID * 0.9 + 1)
GOLD = torch.tensor([0, 3, 10, 7, 5])
EVERY = [0, 1, 2, 3, 4]
LABELLED = [0, 2, 3]
"""Of labels 1, -100, 2, 3, -100."""


def seen(value: Tensor, source: Tensor) -> list[float]:
    """The value, and the gradient's product with cosines."""
    value.backward()
    assert source.grad is not None
    weights = torch.cos(torch.arange(source.numel(), dtype=torch.float64)).view_as(source)
    return [value.item(), (source.grad * weights).sum().item()]


@pytest.mark.parametrize(
    ("losses", "temperature", "rows", "square", "expected"),
    [
        (["jsd=1,beta=0.1"], 1.0, EVERY, 1, [0.153598622788, -0.0015667949924]),
        (["jsd=1,beta=0.5"], 1.0, EVERY, 1, [0.351019976415, -0.000961002871294]),
        (["jsd=1,beta=0.3"], 1.0, LABELLED, 1, [0.298568175954, 0.0247029779121]),
        (["jsd=1,beta=0.1"], 2.0, EVERY, 4, [0.0712349328007, -0.000688563891633]),
        (["jsd=1,beta=0.5"], 2.0, EVERY, 4, [0.179178572017, -0.000889885716927]),
        (["jsd=1,beta=0.3"], 2.0, LABELLED, 4, [0.152802919307, 0.00978165316469]),
        (["kl=0.9", "ce=0.1"], 1.0, EVERY, 1, [2.38361312413, -0.0820528291919]),
        (["kl=0.9", "ce=0.1"], 2.0, EVERY, 1, [3.35634578149, -0.0751445544685]),
        (["pearson=1"], 1.0, EVERY, 1, [0.938610221551, 0.00412349700348]),
        (["pearson=1"], 2.0, EVERY, 1, [3.79005521709, -0.0181918879484]),
        (["kl_standard=1,temperature=1"], 1.0, EVERY, 1, [0.750006179649, -0.00308090785673]),
        (["kl_standard=1,temperature=2"], 1.0, EVERY, 1, [0.855684481907, -0.00106600822698]),
    ],
)
def test_on_the_head(
    losses: list[str], temperature: float, rows: list[int], square: int, expected: list[float]
) -> None:
    """The mean over positions, with every entry kept."""
    objective = Objective.parse(losses, temperature)
    source = STUDENT.clone().requires_grad_()
    targets = sparse(TEACHER[rows], V, temperature)
    targets.gold.copy_(GOLD[rows])
    each = position_losses(
        list(objective.weights),
        source[rows],
        targets,
        temperature=temperature,
        score="softmax",
        settings=objective.settings,
    ).mean(-1)
    weights = torch.tensor([*objective.weights.values()], dtype=torch.float64)
    assert seen((each * weights).sum() / square, source) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rkd_distance", [0.149904335718, -0.090466975964]),
        ("rkd_angle", [0.239781907444, -0.131850466717]),
    ],
)
def test_of_pooled_states(name: str, expected: list[float]) -> None:
    source = torch.sin(torch.arange(20, dtype=torch.float64).view(5, 4) ** 2).requires_grad_()
    pooled = Pooled(projected=[TEACHER], ours=[source], theirs=[TEACHER])
    assert seen(found_of(name, pooled).mean(), source) == pytest.approx(expected, rel=1e-8)
