"""With K = V every sparse loss equals its dense textbook form; with less, the tail is one more outcome."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.batches.targets import distribution
from trainer.losses.divergences import (
    binary_kl_divergence,
    cross_entropy,
    kl_divergence,
    mean_squared_error,
)
from trainer.losses.features import feature_distance
from trainer.losses.labels import binary_cross_entropy
from trainer.losses.objective import position_losses
from trainer.losses.targets import NO_LABEL, SparseTargets

N, V = 7, 23


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def said(logprobs: torch.Tensor, each: int, *, whole: bool) -> list[torch.Tensor]:
    """`distribution` of positions with so many entries each."""
    number = len(logprobs) // each
    return [
        *map(torch.from_numpy, distribution(logprobs.numpy(), np.full(number, each), np.full(number, whole)))
    ]


def sparse(teacher: torch.Tensor, k: int, temperature: float = 1.0) -> SparseTargets:
    """The k largest of each row, as a cache would have them, unrounded."""
    logprobs = teacher.log_softmax(-1)
    kept = logprobs.argsort(dim=-1, descending=True)[:, :k]
    position = torch.arange(len(teacher)).repeat_interleave(k)
    ids = kept.reshape(-1)
    plain = logprobs.gather(-1, kept).reshape(-1)
    lse, lse_t = teacher.logsumexp(-1), (teacher / temperature).logsumexp(-1)
    softened = plain / temperature + (lse / temperature - lse_t)[position]
    probs, tail, negentropy = said(softened, k, whole=k == teacher.shape[1])
    return SparseTargets(
        ids=ids,
        counts=torch.full((len(teacher),), k),
        weights=probs,
        logprobs=plain,
        logits=plain + lse[position],
        tail=tail,
        negentropy=negentropy,
        gold=torch.arange(len(teacher)) % teacher.shape[1],
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_kl_with_all_entries_is_the_dense_one(temperature: float) -> None:
    teacher, student = logits(0), logits(1)
    dense = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    found = kl_divergence(student, sparse(teacher, V, temperature), temperature)
    torch.testing.assert_close(found, dense * temperature**2)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 5, V - 1])
def test_kl_with_a_tail_is_the_dense_one_over_merged_outcomes(k: int, temperature: float) -> None:
    teacher, student = logits(0), logits(1)
    targets = sparse(teacher, k, temperature)
    kept = targets.ids.reshape(N, k)

    def merged(z: torch.Tensor) -> torch.Tensor:
        p = (z / temperature).softmax(-1)
        of_kept = p.gather(-1, kept)
        rest = p.scatter(-1, kept, 0.0).sum(-1, keepdim=True)
        return torch.cat([of_kept, rest], -1).log()

    dense = F.kl_div(merged(student), merged(teacher), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(student, targets, temperature), dense * temperature**2)


@pytest.mark.parametrize("k", [1, 8, V])
def test_kl_of_a_distribution_with_itself_is_zero(k: int) -> None:
    teacher = logits(3)
    zero = kl_divergence(teacher, sparse(teacher, k), 1.0)
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 8, V])
def test_the_gradient_of_kl_is_that_of_autograd(k: int) -> None:
    targets = sparse(logits(0), k, 2.0)
    student = logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kl_divergence(z, targets, 2.0), student)


def test_a_student_that_is_nearly_sure_keeps_a_gradient_on_the_tail() -> None:
    """`1 - sum q` would be exactly 0 in float32 here."""
    teacher = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    student = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss = kl_divergence(student, sparse(teacher, 1), 1.0).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    tail = 1 - teacher.softmax(-1)[0, 0]
    torch.testing.assert_close(student.grad[0, 1:], torch.full((3,), -tail / 3))


def test_a_tail_without_any_mass_in_the_student_is_finite() -> None:
    student = torch.tensor([[500.0, 0.0, 0.0]], requires_grad=True)
    loss = kl_divergence(student, sparse(torch.tensor([[1.0, 0.0, 0.0]]), 1), 1.0).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    assert student.grad.isfinite().all()


def test_entries_that_sum_above_one_are_renormalised() -> None:
    probs, tail, negentropy = said(torch.tensor([0.7, 0.4]).log(), 2, whole=False)
    torch.testing.assert_close(probs, torch.tensor([0.7, 0.4]) / 1.1)
    assert tail.item() == 0
    torch.testing.assert_close(negentropy[0], (probs * probs.log()).sum())


def test_positions_without_entries_and_impossible_entries() -> None:
    """What a smaller vocabulary leaves: all is tail. An entry of no probability adds nothing."""
    counts, none = np.array([0, 3, 0, 1, 0]), np.zeros(5, np.bool_)
    logprobs = np.array([np.log(0.5), np.log(0.25), -np.inf, 0.0], np.float32)
    probs, tail, negentropy = distribution(logprobs, counts, none)
    np.testing.assert_allclose(probs, [0.5, 0.25, 0, 1])
    np.testing.assert_allclose(tail, [1, 0.25, 1, 0, 1], atol=1e-7)
    entropy = [0, 0.5 * np.log(0.5) + 0.5 * np.log(0.25), 0, 0, 0]
    np.testing.assert_allclose(negentropy, entropy, rtol=1e-6, atol=1e-7)
    empty = distribution(np.zeros(0, np.float32), np.zeros(2, np.int64), np.array([True, False]))
    assert [part.tolist() for part in empty] == [[], [0, 1], [0, 0]]


def test_a_whole_position_needs_no_normaliser() -> None:
    """An undeclared temperature is served where every entry is kept."""
    teacher = logits(5)
    plain = teacher.log_softmax(-1).reshape(-1)
    probs, tail, _ = said(plain / 3.0, V, whole=True)
    torch.testing.assert_close(probs.reshape(N, V), (teacher / 3).softmax(-1))
    assert not tail.any()


def test_squared_error_is_a_mean_over_kept_entries() -> None:
    teacher, student = logits(0), logits(1)
    targets = sparse(teacher, 3)
    kept = targets.ids.reshape(N, 3)
    dense = (student - teacher).square().gather(-1, kept).mean(-1)
    (found,) = position_losses(["mse_logits"], student, targets, temperature=1.0, score="softmax")
    torch.testing.assert_close(found, dense)


def test_cross_entropy_leaves_out_what_has_no_label() -> None:
    student, gold = logits(1), torch.arange(N)
    gold[2] = NO_LABEL
    found = cross_entropy(student, gold)
    assert found[2] == 0
    torch.testing.assert_close(found.sum() / (N - 1), F.cross_entropy(student, gold))


def test_binary_kl_is_the_sum_over_classes_of_two_outcomes() -> None:
    teacher, student = logits(0), logits(1)
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    dense = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1)
    torch.testing.assert_close(binary_kl_divergence(student, teacher, 2.0), dense * 4)
    assert binary_kl_divergence(teacher, teacher, 1.0).abs().max() == 0


def test_dense_losses_equal_their_textbook_forms() -> None:
    teacher, student = logits(0), logits(1)
    gold, every = (logits(2) > 0).double(), torch.ones(N, dtype=torch.bool)
    bce = binary_cross_entropy(student, gold, every).mean()
    torch.testing.assert_close(bce, F.binary_cross_entropy_with_logits(student, gold))
    mse = mean_squared_error(student, teacher, every).mean()
    torch.testing.assert_close(mse, F.mse_loss(student, teacher))
    none = torch.zeros(N, dtype=torch.bool)
    assert binary_cross_entropy(student, gold, none).sum() == 0
    assert mean_squared_error(student, teacher, none).sum() == 0


def test_feature_distances() -> None:
    ours, theirs = logits(0), logits(1)
    torch.testing.assert_close(feature_distance(ours, theirs, "mse").mean(), F.mse_loss(ours, theirs))
    cosine = F.cosine_embedding_loss(ours, theirs, torch.ones(N))
    torch.testing.assert_close(feature_distance(ours, theirs, "cosine").mean(), cosine)
    zero = feature_distance(ours, 3 * ours, "cosine")
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-12, rtol=0)
