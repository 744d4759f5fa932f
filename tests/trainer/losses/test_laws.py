"""Laws of every loss on the head, over the registry: a new entry is held to all, and needs its textbook form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from schemas.policies import Threshold
from tests.trainer.draws import SMALL, every_draw, rows_of_draws, sampling_spec, shaped
from tests.trainer.losses.test_losses import sparse
from tests.trainer.losses.textbook import TEXTBOOK, binary
from trainer.batches.collate import Collation
from trainer.losses.buffers import Buffers
from trainer.losses.fused import fused_loss
from trainer.losses.objective import Objective, position_losses
from trainer.losses.registry import LOSSES
from trainer.losses.serving import LABELS, WHOLE, refusal
from trainer.losses.targets import DenseTargets, SparseTargets
from trainer.models.heads import Head, LogitTransform

N, V = 6, 11
HEAD = [name for name, loss in LOSSES.items() if loss.softmax is not None]
SIGMOID = [name for name, loss in LOSSES.items() if loss.sigmoid is not None and loss.softens]
SHAPED = ("kl_kept", "pearson")
"""What makes a shape of a cut tail, which is not the teacher's own."""
TAILED = [name for name in HEAD if "tail" in LOSSES[name].parameters]
DRAWN = [
    name
    for name in HEAD
    if refusal(
        Objective(weights={name: 1.0}).asked(name, sampling_spec(Threshold(tau=1 / 4), own_logits=True))
    )
    is None
    and LOSSES[name].kind not in (LABELS,)
    and name != "mse_logits"
]


def logits(seed: int, scale: float = 2.0, rows: int = N, width: int = V) -> Tensor:
    return (
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    )


def targets_of(teacher: Tensor, k: int, temperature: float = 1.0) -> SparseTargets:
    """As a cache would have them that stores every scalar, unrounded."""
    found = sparse(teacher, k, temperature)
    gold = (torch.arange(len(teacher)) * 5 + 3) % teacher.shape[1]
    plain, warm = ((teacher / t).log_softmax(-1).gather(-1, gold[:, None])[:, 0] for t in (1.0, temperature))
    p = teacher.softmax(-1)
    entropy = -torch.xlogy(p, p).sum(-1)
    return replace(found, gold=gold, gold_logprobs=plain, gold_softened=warm, entropy=entropy)


def found_of(
    name: str,
    student: Tensor,
    targets: Any,
    temperature: float = 1.0,
    score: Any = "softmax",
    **settings: Any,
) -> Tensor:
    told = {name: settings}
    return position_losses([name], student, targets, temperature=temperature, score=score, settings=told)[0]


def textbook_of(
    name: str, teacher: Tensor, student: Tensor, gold: Tensor, temperature: float = 1.0
) -> Tensor:
    return TEXTBOOK[name](teacher, student, gold, temperature, LOSSES[name].defaults)


def test_every_loss_on_the_head_has_its_textbook_form() -> None:
    assert set(HEAD) == set(TEXTBOOK)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", HEAD)
def test_with_all_entries_it_is_the_dense_form(name: str, temperature: float) -> None:
    teacher = logits(0)
    targets = targets_of(teacher, V, temperature)
    ours, theirs = (logits(1).requires_grad_() for _ in range(2))
    found = found_of(name, ours, targets, temperature)
    dense = textbook_of(name, teacher, theirs, targets.gold, temperature)
    torch.testing.assert_close(found, dense, atol=1e-6, rtol=1e-6)
    weights = torch.arange(1.0, N + 1, dtype=torch.float64)
    (found * weights).sum().backward()
    (dense * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 4, V])
@pytest.mark.parametrize("name", HEAD)
def test_a_distribution_from_itself_is_zero_where_the_textbooks_is(name: str, k: int) -> None:
    teacher = logits(3)
    targets = targets_of(teacher, k)
    if textbook_of(name, teacher, teacher, targets.gold).abs().max() > 1e-9 or (name in SHAPED and k < V):
        assert found_of(name, teacher, targets).abs().max() > 1e-9
        return
    found = found_of(name, teacher, targets)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-9, rtol=0)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("name", HEAD)
def test_gradcheck(name: str, k: int) -> None:
    targets = targets_of(logits(0, rows=3, width=5), k, 2.0)
    student = logits(1, rows=3, width=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: found_of(name, z, targets, 2.0), student)


@pytest.mark.parametrize("tail", ["ignore", "uniform"])
@pytest.mark.parametrize("name", TAILED)
def test_other_tails(name: str, tail: str) -> None:
    """A flat tail is the dense form of one; and nothing changes where there is none."""
    teacher, student = logits(0), logits(1)
    whole = targets_of(teacher, V, 2.0)
    same = found_of(name, student, whole, 2.0)
    torch.testing.assert_close(found_of(name, student, whole, 2.0, tail=tail), same)
    cut = targets_of(teacher, 4, 2.0)
    p = (cut.tail / (V - 4))[:, None].repeat(1, V).index_put((cut.position, cut.ids), cut.weights)
    cut = replace(cut, entropy=torch.distributions.Categorical(logits=p.log() * 2).entropy())
    if tail == "uniform":
        found = found_of(name, student, cut, 2.0, tail=tail)
        torch.testing.assert_close(found, textbook_of(name, p.log() * 2, student, cut.gold, 2.0))
    z = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: found_of(name, z, cut, 2.0, tail=tail), z)


@pytest.mark.parametrize("name", TAILED)
def test_of_two_outcomes_what_each_is_worth_alone_is_worth_both(name: str) -> None:
    """`tail=ignore` is the sum over kept entries and nothing more."""
    teacher, student = logits(0, width=2), logits(1, width=2)
    parts = []
    for sides in (teacher, teacher.flip(-1)):
        targets = targets_of(sides, 2)
        first = targets.ids == 0
        one = replace(
            targets,
            ids=targets.ids[first],
            counts=targets.position[first].bincount(minlength=len(targets.tail)),
            weights=targets.weights[first],
            logprobs=targets.logprobs[first],
            logits=None,
            tail=1 - targets.weights[first],
            negentropy=targets.negentropy,
        )
        ours = student if sides is teacher else student.flip(-1)
        parts.append(found_of(name, ours, one, tail="ignore"))
        bucket = found_of(name, ours, one)
    torch.testing.assert_close(parts[0] + parts[1], textbook_of(name, teacher, student, targets.gold))
    torch.testing.assert_close(bucket, parts[0] + parts[1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", SIGMOID)
def test_of_a_multi_label_teacher_it_is_the_sum_over_two_outcomes(name: str, temperature: float) -> None:
    teacher, student = logits(0), logits(1)
    dense = binary(name)(teacher, student, torch.zeros(N).long(), temperature, LOSSES[name].defaults)
    targets = DenseTargets(
        logits=teacher,
        gold=torch.zeros_like(teacher),
        labelled=torch.ones(N, dtype=torch.bool),
        row=torch.arange(N),
    )
    found = found_of(name, student, targets, temperature, "sigmoid")
    torch.testing.assert_close(found, dense, atol=1e-6, rtol=1e-6)
    z = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: found_of(name, z, targets, temperature, "sigmoid"), z)
    zero = found_of(name, teacher, targets, temperature, "sigmoid")
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-9, rtol=0)


DRAWS = [(0.3, 1 / 4, 1), (1.5, 1 / 4, 1), (1.5, 1 / 8, 5), (4.0, 1 / 4, 1)]


@pytest.mark.parametrize(("scale", "tau", "k"), DRAWS)
@pytest.mark.parametrize("name", DRAWN)
def test_the_expectation_over_all_draws_is_the_dense_gradient(
    name: str, scale: float, tau: float, k: int
) -> None:
    """Through collation, over every interval of the sampler, at both declared temperatures."""
    scalars = ("entropy", "gold", "logsumexp")
    keep = Threshold(tau=tau, k=k)
    wide = 2**-11  # codes reach 16 nats
    spec = sampling_spec(
        keep, temperatures=(1.0, 2.0), own_logits=True, scalars=scalars, scalar_step_nats=wide
    )
    draws, shares = every_draw(shaped(scale), spec)
    rows = rows_of_draws(shaped(scale), draws, spec)
    teacher, student = torch.from_numpy(shaped(scale))[None], torch.from_numpy(shaped(1.0)[::-1].copy())[None]
    for temperature in (1.0, 2.0):
        objective = Objective(weights={name: 1.0}, temperature=temperature)
        collation = Collation(
            student_vocab=SMALL, pad_id=0, temperature=temperature, stored=objective.stored(spec)
        )
        batch = collation.batch(rows)
        share = torch.from_numpy(shares[batch.input_ids[:, 0].numpy()])
        ours, theirs = (student.clone().requires_grad_() for _ in range(2))
        each = found_of(name, ours.expand(len(share), -1), batch.targets, temperature)
        (each * share).sum().backward()
        textbook_of(name, teacher, theirs, torch.tensor([3]), temperature).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, atol=3e-3, rtol=0)


@pytest.mark.parametrize("k", [4, V])
@pytest.mark.parametrize("name", HEAD)
def test_the_order_of_entries_does_not_matter(name: str, k: int) -> None:
    targets, student = targets_of(logits(0), k, 2.0), logits(1)
    order = torch.randperm(N * k, generator=torch.Generator().manual_seed(4))
    order = order[targets.position[order].argsort(stable=True)]
    shuffled = replace(
        targets,
        ids=targets.ids[order],
        weights=targets.weights[order],
        logprobs=targets.logprobs[order],
        logits=None if targets.logits is None else targets.logits[order],
    )
    assert not torch.equal(shuffled.ids, targets.ids)
    torch.testing.assert_close(found_of(name, student, shuffled, 2.0), found_of(name, student, targets, 2.0))


class Counted(TorchDispatchMode):
    """How often each operation has an operand as wide as the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if any(isinstance(one, Tensor) and one.shape == (N, V) for one in given):
            self.calls[operation.overloadpacket.__name__] += 1
        return operation(*given, **(named or {}))

    @property
    def sums(self) -> int:
        return sum(self.calls[name] for name in ("sum", "mean", "_log_softmax"))


def sums_of(name: str, k: int, *, drawn: bool = False, **settings: Any) -> int:
    """Beyond what a loss of kept entries and the tail takes."""
    found = []
    for each, told in (("rkl", {}), (name, settings)):
        targets = replace(targets_of(logits(0), k), drawn=drawn and each == name)
        with Counted() as counted:
            found_of(each, logits(1).requires_grad_(), targets, **told)
        assert counted.calls["_softmax"] <= 1
        found.append(counted.sums)
    return found[1] - found[0] + (drawn and k < V)  # of draws there is no tail to sum


@pytest.mark.parametrize("name", HEAD)
def test_its_passes_are_the_sums_that_it_takes(name: str) -> None:
    k = V if LOSSES[name].kind is WHOLE else 4
    most = [sums_of(name, k), *([sums_of(name, k, drawn=True)] if name in DRAWN else [])]
    assert max(most) == LOSSES[name].passes
    if name in TAILED:
        assert sums_of(name, k, tail="uniform") <= sums_of(name, k) + 1


def test_all_terms_take_one_softmax_a_temperature() -> None:
    targets, student = targets_of(logits(0), V, 2.0), logits(1).requires_grad_()
    with Counted() as counted:
        position_losses(HEAD, student, targets, temperature=2.0, score="softmax")
    assert counted.calls["_softmax"] == 2


@pytest.mark.parametrize("k", [4, V])
def test_terms_that_share_a_chunk_are_those_apart(k: int) -> None:
    """In the fused pass, whose buffers are written over, at a temperature: each term's value and the sum's gradient."""
    targets = targets_of(logits(0), k, 2.0)
    hidden, weight = logits(5, width=3), logits(6, rows=V, width=3)
    weights = torch.arange(1.0, len(HEAD) + 1, dtype=torch.float64)
    head = Head(weight=weight.clone().requires_grad_(), bias=None, transform=LogitTransform())
    buffers = Buffers()

    def terms(z: Tensor, first: int, last: int) -> Tensor:
        part = targets.chunk(first, last, slice(first * k, last * k))
        return position_losses(HEAD, z, part, temperature=2.0, score="softmax", buffers=buffers).sum(-1)

    found = fused_loss(hidden, head, terms, weights, chunk_elements=2 * V)
    found.loss.backward()
    plain = weight.clone().requires_grad_()
    each = torch.stack([found_of(name, hidden @ plain.t(), targets, 2.0).sum() for name in HEAD])
    (each * weights).sum().backward()
    torch.testing.assert_close(found.terms, each.detach())
    torch.testing.assert_close(head.weight.grad, plain.grad)
