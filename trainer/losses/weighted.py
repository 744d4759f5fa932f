"""Forward KL that counts some positions more than others, by the teacher's entropy or the student's; and squared
probabilities. All are linear in the teacher's p."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.losses.divergences import CROSS_ENTROPY, TAIL, forward_kl
from trainer.losses.loss import Loss, Parameter, Settings
from trainer.losses.scores import DenseScores, Scores
from trainer.losses.serving import LINEAR


def _brier(scores: Scores, _: Settings) -> Float[Tensor, " N"]:
    """The tail is one more outcome. Of draws `sum p^2`, a constant, is left out."""
    soft, p, q = scores.soft, scores.weights, scores.soft.kept.exp()
    if not scores.targets.drawn:
        at_tail = (scores.tail - soft.tail.exp()).square()
        at_tail = torch.where(scores.has_tail, at_tail, 0)
        return (scores.sum((p - q).square()) + at_tail) * scores.temperature**2
    return (scores.power_sum(2.0) - 2 * scores.sum(p * q)) * scores.temperature**2


def _brier_of_classes(scores: DenseScores, _: Settings) -> Float[Tensor, " N"]:
    p, q = ((z / scores.temperature).sigmoid() for z in (scores.targets.logits, scores.logits))
    return 2 * (p - q).square().sum(-1) * scores.temperature**2


def teacher_entropy(scores: Scores) -> Float[Tensor, " N"]:
    """In nats at temperature 1: what is stored, else that of the kept entries and the tail."""
    if scores.targets.entropy is not None:
        return scores.targets.entropy.to(scores.logits.dtype)
    log_p = scores.targets.logprobs.to(scores.logits.dtype)
    p = log_p.exp()
    return -scores.sum(torch.where(p > 0, p * log_p, 0))


def _by_entropy(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    most = scores.width.clamp_min(2).to(scores.logits.dtype).log()
    share = (teacher_entropy(scores) / most).clamp(0, 1)
    weight = share if settings["towards"] == "unsure" else 1 - share
    return weight * forward_kl(scores, settings)


def _above(entropy: Tensor, scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """A threshold in nats, and not a share of the batch: the same however positions fall on chunks and ranks."""
    return torch.where(entropy >= float(settings["nats"]), forward_kl(scores, settings), 0)


def _student_unsure(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    return _above(torch.special.entr(scores.plain.probs).sum(-1), scores, settings)


def _teacher_unsure(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    return _above(teacher_entropy(scores), scores, settings)


_NATS = {"nats": Parameter.at_least_0(1.0), "tail": TAIL}
LOSSES = (
    Loss(
        name="brier",
        formula="sum (p - q)^2",
        paper="Brier (1950)",
        kind=LINEAR,
        on_draws="its value lacks the teacher's own sum of p^2",
        softmax=_brier,
        sigmoid=_brier_of_classes,
        softens=True,
        passes=1,
    ),
    Loss(
        name="kl_entropy",
        formula="w sum p log(p / q), w = H(p) / log V, or 1 - H(p) / log V towards what the teacher is sure of",
        paper="arXiv:2311.13621",
        kind=LINEAR,
        without_entropy=CROSS_ENTROPY,
        parameters={"towards": Parameter(default="unsure", choices=("unsure", "sure")), "tail": TAIL},
        softmax=_by_entropy,
        stores=("entropy",),
        softens=True,
    ),
    Loss(
        name="kl_student_unsure",
        formula="sum p log(p / q) where H(q) >= nats, else 0",
        paper="arXiv:2602.01395",
        kind=LINEAR,
        without_entropy=CROSS_ENTROPY,
        parameters=_NATS,
        softmax=_student_unsure,
        softens=True,
        passes=1,
    ),
    Loss(
        name="kl_teacher_unsure",
        formula="sum p log(p / q) where H(p) >= nats, else 0",
        paper="arXiv:2602.01395",
        kind=LINEAR,
        without_entropy=CROSS_ENTROPY,
        parameters=_NATS,
        softmax=_teacher_unsure,
        stores=("entropy",),
        softens=True,
    ),
)
