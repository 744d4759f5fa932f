"""Losses on how a teacher ranks or relates the scores of one position: Plackett-Luce, differences of the largest
logits, Pearson correlation, adaptive KL, and KL of standardised logits. All need exact entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainer.losses.decoupled import apart
from trainer.losses.divergences import forward_kl
from trainer.losses.loss import Loss, Parameter, Settings
from trainer.losses.pointwise import REVERSE_KL
from trainer.losses.scores import FLOOR, Scores
from trainer.losses.serving import EXACT, WHOLE
from trainer.losses.targets import TINY

_BUCKET = {"tail": "bucket"}
_SMALL = 1e-8


def _pld(scores: Scores, _: Settings) -> Float[Tensor, " N"]:
    """The teacher's ranking, the gold id before all: each choice weighs what the teacher gives it, and is a cross
    entropy over what is left. Ids that are not kept are left to the end, and never chosen; what the teacher gives the
    same stands as the cache has it, likeliest first before it was rounded."""
    soft, is_gold, found = scores.soft, scores.is_gold, apart(scores)
    first = scores.padded(torch.where(is_gold, 2.0, scores.weights), -1.0)
    order = first.argsort(dim=-1, descending=True, stable=True)
    p = scores.padded(torch.where(is_gold, 0, scores.weights), 0.0).gather(-1, order)
    log_q = scores.padded(torch.where(is_gold, FLOOR, soft.kept), FLOOR).gather(-1, order)
    left = torch.cat([log_q, found.log_q_tail[:, None]], -1).flip(-1).logcumsumexp(-1).flip(-1)[:, :-1]
    chosen = (p * (left - log_q)).sum(-1) - found.p_gold * found.log_q_gold
    return torch.where(found.has_gold, chosen, 0) * scores.temperature**2


def _bild(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """Of raw logits, of which only differences count, at a temperature of its own."""
    t, k = float(settings["temperature"]), int(float(settings["k"]))
    theirs = scores.padded(scores.targets.logprobs.to(scores.logits.dtype).clamp_min(FLOOR), 2 * FLOOR) / t
    ours = scores.padded(scores.kept_logits(), 2 * FLOOR) / t
    is_kept = scores.padded(torch.ones_like(scores.weights), 0.0) > 0
    found = [_differences(theirs, ours, leader, is_kept, k) for leader in (theirs, ours)]
    return (found[0] + found[1]) * t**2


def _differences(theirs: Tensor, ours: Tensor, leader: Tensor, is_kept: Tensor, k: int) -> Tensor:
    """KL between the softmax over differences of every two of the leader's k largest."""
    k = min(k, theirs.shape[-1])
    if k < 2:
        return ours.sum(-1) * 0
    places = leader.detach().argsort(dim=-1, descending=True, stable=True)[:, :k]
    first, second = torch.triu_indices(k, k, 1, device=ours.device)
    parts, valid = [], is_kept.gather(-1, places)[:, second]
    for logits in (theirs, ours):
        chosen = logits.gather(-1, places)
        difference = torch.where(valid, chosen[:, first] - chosen[:, second], FLOOR)
        parts.append(difference.log_softmax(-1))
    each = parts[0].exp() * (parts[0] - parts[1])
    return torch.where(valid, each, 0).sum(-1)


def _pearson(scores: Scores, _: Settings) -> Float[Tensor, " N"]:
    """1 - correlation over all V ids; what is not kept is taken to be flat, in the teacher."""
    soft = scores.soft
    width = scores.width.to(soft.kept.dtype)
    others, has_tail = scores.num_others, scores.has_tail
    even = torch.where(has_tail, scores.tail / others, 0)
    p, q = scores.weights, soft.kept.exp()
    products = scores.sum(p * q) + torch.where(has_tail, even * soft.tail.exp(), 0) - 1 / width
    of_p = (scores.sum(p.square()) + even.square() * others - 1 / width).clamp_min(_SMALL**2)
    of_q = (scores.power_sum(2.0) - 1 / width).clamp_min(_SMALL**2)
    return (1 - products / (of_p.sqrt() * of_q.sqrt())) * scores.temperature**2


def _adaptive(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """Forward and reverse KL by how much of the gap |p - q| lies in the teacher's head, the likeliest ids with a mass
    of `mu`, and how much in the rest."""
    soft = scores.soft
    p, q = scores.weights, soft.kept.detach().exp()
    padded = scores.padded(p, 0.0)
    ordered, places = padded.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    gap = scores.padded((p - q).abs(), 0.0).gather(-1, places)
    is_head = before < float(settings["mu"])
    head = torch.where(is_head, gap, 0).sum(-1)
    tail = torch.where(scores.has_tail, (scores.tail - soft.tail.detach().exp()).abs(), 0)
    rest = torch.where(is_head, 0, gap).sum(-1) + tail
    share = head / (head + rest).clamp_min(TINY)
    return share * forward_kl(scores, _BUCKET) + (1 - share) * REVERSE_KL.softmax(scores, _BUCKET)


def _standardised(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """KL of logits of mean 0 and deviation 1, at a temperature of its own, times its square."""
    t = float(settings["temperature"])
    theirs = scores.padded(scores.targets.logprobs.to(scores.logits.dtype).clamp_min(FLOOR), 0.0)
    ours = scores.padded(scores.kept_logits(), 0.0)
    is_class = scores.padded(torch.ones_like(scores.weights), 0.0) > 0  # all are kept
    log_p, log_q = (
        F.log_softmax((_standard(logits, is_class, scores.num_kept) / t).masked_fill(~is_class, FLOOR), -1)
        for logits in (theirs, ours)
    )
    return torch.where(is_class, log_p.exp() * (log_p - log_q), 0).sum(-1) * t**2


def _standard(
    logits: Float[Tensor, "N V"], is_class: Bool[Tensor, "N V"], counts: Int64[Tensor, " N"]
) -> Float[Tensor, "N V"]:
    number = counts[:, None]
    centred = torch.where(is_class, logits - logits.sum(-1, keepdim=True) / number, 0)
    variance = centred.square().sum(-1, keepdim=True) / (number - 1).clamp_min(1)
    return centred / (variance.clamp_min(_SMALL**2).sqrt() + 1e-7)


LOSSES = (
    Loss(
        name="pld",
        formula="-sum over ranks r of p_r log(q_r / sum of q from r on), the gold id first",
        paper="arXiv:2506.12542",
        kind=EXACT,
        softmax=_pld,
        passes=2,
        per="labelled",
        stores=("gold",),
        softens=True,
    ),
    Loss(
        name="bild",
        formula="KL of softmax over z_i - z_j of the teacher's k largest, and of the student's k largest",
        paper="arXiv:2406.13555",
        kind=EXACT,
        parameters={
            "k": Parameter(default=8.0, low=2.0, high=256.0, whole=True),
            "temperature": Parameter.between(3.0, 1e6),
        },
        softmax=_bild,
    ),
    Loss(
        name="pearson",
        formula="1 - corr(p, q) over the ids",
        paper="arXiv:2205.10536",
        kind=EXACT,
        softmax=_pearson,
        softens=True,
        passes=1,
    ),
    Loss(
        name="akl",
        formula="g KL(p || q) + (1 - g) KL(q || p), g the share of |p - q| in the head of mass mu",
        paper="arXiv:2404.02657",
        kind=EXACT,
        parameters={"mu": Parameter.share(0.5)},
        softmax=_adaptive,
        softens=True,
    ),
    Loss(
        name="kl_standard",
        formula="KL(softmax(s(z_p) / t) || softmax(s(z_q) / t)), s(z) = (z - mean z) / deviation of z",
        paper="arXiv:2403.01427",
        kind=WHOLE,
        parameters={"temperature": Parameter.between(2.0, 1e6)},
        softmax=_standardised,
        passes=7,
    ),
)
