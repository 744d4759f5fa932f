"""Cross entropy with the corpus's own labels, and what of it bears labels that are wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from trainer.losses.aligned_targets import AlignedScores
from trainer.losses.divergences import mean_squared_error
from trainer.losses.loss import Loss, Parameter, Settings
from trainer.losses.scores import FLOOR, DenseScores, Scores
from trainer.losses.serving import LABELS


def binary_cross_entropy(
    logits: Float[Tensor, "N V"], gold: Float[Tensor, "N V"], labelled: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Mean over classes of the binary cross entropy in nats; 0 where there is no label."""
    each = F.binary_cross_entropy_with_logits(logits, gold, reduction="none").mean(-1)
    return torch.where(labelled, each, 0)


def _ce(scores: Scores, _: Settings) -> Float[Tensor, " N"]:
    return -scores.plain.gold


def _own_tokens(scores: AlignedScores, _: Settings) -> Float[Tensor, " M"]:
    return -scores.gold


def _binary(scores: DenseScores, _: Settings) -> Float[Tensor, " N"]:
    return binary_cross_entropy(scores.logits, scores.targets.gold, scores.targets.labelled)


def _values(scores: DenseScores, _: Settings) -> Float[Tensor, " N"]:
    return mean_squared_error(scores.logits, scores.targets.gold, scores.targets.labelled)


def _smoothed(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    epsilon, plain = float(settings["epsilon"]), scores.plain
    every = scores.among_classes((scores.logits - plain.logsumexp[:, None]).clamp_min(FLOOR))
    mean_log = every.sum(-1) / scores.width
    return torch.where(scores.has_gold, -(1 - epsilon) * plain.gold - epsilon * mean_log, 0)


def _smoothed_binary(scores: DenseScores, settings: Settings) -> Float[Tensor, " N"]:
    epsilon = float(settings["epsilon"])
    gold = scores.targets.gold * (1 - epsilon) + epsilon / 2
    return binary_cross_entropy(scores.logits, gold, scores.targets.labelled)


def _symmetric(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """The reverse part is `-sum q log y` with the logarithm of 0 taken as A: `-A (1 - q_gold)`."""
    log_q = scores.plain.gold
    other = -float(settings["floor"]) * -torch.expm1(log_q)
    return float(settings["alpha"]) * -log_q + float(settings["beta"]) * torch.where(
        scores.has_gold, other, 0
    )


def _generalised(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    exponent = float(settings["q"])
    return torch.where(scores.has_gold, -torch.expm1(exponent * scores.plain.gold) / exponent, 0)


LOSSES = (
    Loss(
        name="ce",
        formula="-log q_gold",
        paper="",
        kind=LABELS,
        softmax=_ce,
        sigmoid=_binary,
        identity=_values,
        aligned=_own_tokens,
        per="labelled",
    ),
    Loss(
        name="ce_smoothed",
        formula="-(1 - e) log q_gold - (e / V) sum log q, e = epsilon",
        paper="arXiv:1512.00567",
        kind=LABELS,
        parameters={"epsilon": Parameter(default=0.1, low=0.0, high=1.0)},
        softmax=_smoothed,
        sigmoid=_smoothed_binary,
        per="labelled",
        passes=1,
    ),
    Loss(
        name="ce_symmetric",
        formula="-alpha log q_gold - beta floor (1 - q_gold)",
        paper="arXiv:1908.06112",
        kind=LABELS,
        parameters={
            "alpha": Parameter.at_least_0(0.1),
            "beta": Parameter.at_least_0(1.0),
            "floor": Parameter(default=-4.0, low=-100.0, high=0.0, beyond=True),
        },
        softmax=_symmetric,
        per="labelled",
    ),
    Loss(
        name="ce_generalised",
        formula="(1 - q_gold^q) / q",
        paper="arXiv:1805.07836",
        kind=LABELS,
        parameters={"q": Parameter.share(0.7)},
        softmax=_generalised,
        per="labelled",
    ),
)
