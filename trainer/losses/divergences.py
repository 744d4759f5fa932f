"""Forward KL, in the forms that have a name, and squared differences of logits and values.

With K = V every one equals its dense textbook form (a test says so). Where entries are drawn their weights are never
renormalised or clipped, though they rarely sum to 1: the gradient is `W q - w`, with W the sum of the weights w, and
its expectation is the dense one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainer.losses.loss import Loss, Parameter, Settings
from trainer.losses.scores import DenseScores, Scores
from trainer.losses.serving import KEPT, LINEAR, LOGITS
from trainer.losses.targets import NO_LABEL, TINY, SparseTargets

CROSS_ENTROPY = "is a cross entropy"
"""The value of a forward KL without the teacher's entropy."""
TAIL = Parameter(default="bucket", choices=("bucket", "ignore", "uniform"))
"""What a cut distribution's tail is taken for: one more outcome; nothing; or spread evenly over the other ids."""


def kl_divergence(
    logits: Float[Tensor, "N V"], targets: SparseTargets, temperature: float
) -> Float[Tensor, " N"]:
    """KL(teacher || student) of each position in nats, times T squared (arXiv:1503.02531, section 2.1).

    `sum p_i (log p_i - log q_i) + p_tail (log p_tail - log q_tail)`, with the student's `q` at the same temperature
    and `q_tail` the mass that it gives to all other ids.
    """
    return forward_kl(Scores(logits, targets, temperature), {"tail": "bucket"})


def forward_kl(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """`kl_divergence`, its tail as the settings say."""
    soft, tail = scores.soft, scores.tail
    found = scores.targets.negentropy.to(tail.dtype) - scores.sum(scores.weights * soft.kept)
    found = found - (tail * soft.tail if settings["tail"] == "bucket" else torch.xlogy(tail, tail))
    if settings["tail"] == "uniform":
        others = scores.num_others
        found = found + torch.xlogy(tail, tail / others) - tail / others * scores.log_sum_outside()
    return found * scores.temperature**2


def _kept_kl(scores: Scores, _: Settings) -> Float[Tensor, " N"]:
    """From the kept entries, divided by their sum, to the student's whole softmax: what is not kept is taken to be
    impossible. Biased, and only here to be compared with."""
    weights = scores.weights / scores.sum(scores.weights).clamp_min(TINY)[scores.targets.position]
    found = scores.sum(torch.xlogy(weights, weights) - weights * scores.soft.kept)
    return found * scores.temperature**2


def cross_entropy(logits: Float[Tensor, "N V"], gold: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
    """-log q(gold) in nats; 0 where there is no label."""
    return F.cross_entropy(logits, gold, reduction="none", ignore_index=NO_LABEL)


def _kept_squares(scores: Scores, _: Settings) -> Float[Tensor, " N"]:
    """Over the entries whose logit is known."""
    theirs = scores.targets.logits
    assert theirs is not None  # the class of the loss has seen to it
    known = theirs.isfinite()
    difference = torch.where(known, scores.kept_logits() - torch.where(known, theirs, 0), 0)
    counts = scores.sum(known.to(difference.dtype))
    return scores.sum(difference.square()) / counts.clamp_min(1)


def binary_kl_divergence(
    logits: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], temperature: float
) -> Float[Tensor, " N"]:
    """Sum over the classes of a multi-label teacher of the KL between two Bernoullis, in nats, times T squared."""
    z, t = logits / temperature, teacher / temperature
    p = t.sigmoid()
    on = p * (F.logsigmoid(t) - F.logsigmoid(z))
    off = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-z))
    return (on + off).sum(-1) * temperature**2


def mean_squared_error(
    values: Float[Tensor, "N V"], wanted: Float[Tensor, "N V"], counted: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Mean over the values of a position of the squared difference; 0 where it does not count."""
    return torch.where(counted, (values - wanted).square().mean(-1), 0)


def _binary_kl(scores: DenseScores, _: Settings) -> Float[Tensor, " N"]:
    return binary_kl_divergence(scores.logits, scores.targets.logits, scores.temperature)


def _squares(scores: DenseScores, _: Settings) -> Float[Tensor, " N"]:
    targets = scores.targets
    return mean_squared_error(scores.logits, targets.logits, torch.ones_like(targets.labelled))


LOSSES = (
    Loss(
        name="kl",
        formula="sum p log(p / q)",
        paper="arXiv:1503.02531",
        kind=LINEAR,
        without_entropy=CROSS_ENTROPY,
        parameters={"tail": TAIL},
        softmax=forward_kl,
        sigmoid=_binary_kl,
        softens=True,
    ),
    Loss(
        name="kl_kept",
        formula="sum p' log(p' / q), p' = p / sum of kept p",
        paper="arXiv:1503.02531",
        kind=KEPT,
        softmax=_kept_kl,
        softens=True,
    ),
    Loss(
        name="mse_logits",
        formula="mean (z_p - z_q)^2 over kept entries",
        paper="arXiv:2105.08919",
        kind=LOGITS,
        softmax=_kept_squares,
        sigmoid=_squares,
        identity=_squares,
    ),
)
