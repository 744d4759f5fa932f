"""Losses that set the gold id apart from all others: decoupled KD and NKD.

Both are linear in the teacher's p once its probability of the gold id is known: that of a kept entry where everything
is exact, else the scalar that the cache stores. Of the other ids each is divided by `1 - p_gold`. Where entries are
drawn that is known no better than `p_gold` is rounded, and is taken to be at least 1/64; where they are exact it is the
sum of the others, tail included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainer.losses.loss import Loss, Parameter, Settings
from trainer.losses.scores import FLOOR, Scores
from trainer.losses.serving import LINEAR
from trainer.losses.targets import TINY

_LEAST_REST = 1 / 64
_ON_DRAWS = (
    "but where the teacher gives the gold id more than 63/64, whose other ids count for less than they should"
)


class Apart(NamedTuple):
    """A teacher's and a student's distributions at the temperature, the gold id apart."""

    p_gold: Float[Tensor, " N"]
    log_q_gold: Float[Tensor, " N"]
    log_q_rest: Float[Tensor, " N"]
    """Of all other ids together."""
    p_rest: Float[Tensor, " N"]
    weights: Float[Tensor, " E"]
    """Of kept entries, given that it is not the gold id; 0 for that."""
    tail: Float[Tensor, " N"]
    log_q_tail: Float[Tensor, " N"]
    """Of what is neither kept nor gold."""
    has_gold: Bool[Tensor, " N"]


def apart(scores: Scores) -> Apart:
    """The gold id apart from the others."""
    targets, soft = scores.targets, scores.soft
    known, is_kept = _gold_probability(scores, scores.weights, targets.gold_softened)
    p_gold = torch.where(scores.has_gold, known, 0)
    others = torch.where(scores.is_gold, 0, scores.weights)
    tail = torch.where(is_kept, scores.tail, (scores.tail - p_gold).clamp_min(0))
    rest = (
        (1 - p_gold).clamp_min(_LEAST_REST) if targets.drawn else (scores.sum(others) + tail).clamp_min(TINY)
    )
    return Apart(
        p_gold=p_gold,
        log_q_gold=soft.gold.clamp_min(FLOOR),
        log_q_rest=scores.log_mass_without_gold(without_kept=False),
        p_rest=rest,
        weights=others / rest[targets.position],
        tail=tail / rest,
        log_q_tail=torch.zeros_like(tail)
        if targets.drawn
        else scores.log_mass_without_gold(without_kept=True),
        has_gold=scores.has_gold,
    )


def _gold_probability(
    scores: Scores, weights: Float[Tensor, " E"], stored: Float[Tensor, " N"] | None
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """The teacher's, and whether it is a kept entry's: from there where entries are exact, else what is stored."""
    kept = scores.sum(torch.where(scores.is_gold, weights, 0))
    is_kept = scores.sum(scores.is_gold.to(kept.dtype)) > 0
    if stored is None:
        return kept, is_kept
    known = stored.to(kept.dtype).exp().nan_to_num(0.0)
    return known if scores.targets.drawn else torch.where(is_kept, kept, known), is_kept


def _others(scores: Scores, found: Apart) -> Float[Tensor, " N"]:
    """`-sum over i != gold of p_i / (1 - p_gold) log(q_i / (1 - q_gold))`."""
    cross = -scores.sum(found.weights * scores.soft.kept) - found.tail * found.log_q_tail
    mass = scores.sum(found.weights) + found.tail
    return cross + mass * found.log_q_rest


def _entropy_of_others(scores: Scores, found: Apart) -> Float[Tensor, " N"]:
    """`sum over i != gold of p log p`, p divided by its sum; from the whole's where entries are drawn."""
    if not scores.targets.drawn:
        return scores.sum(torch.xlogy(found.weights, found.weights)) + torch.xlogy(found.tail, found.tail)
    whole = scores.targets.negentropy.to(found.p_gold.dtype)
    rest = (whole - torch.xlogy(found.p_gold, found.p_gold)) / found.p_rest - found.p_rest.log()
    return torch.where(whole == 0, 0, rest)


def _dkd(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    found = apart(scores)
    p, rest = found.p_gold, 1 - found.p_gold
    target = torch.xlogy(p, p) - p * found.log_q_gold + torch.xlogy(rest, rest) - rest * found.log_q_rest
    other = _entropy_of_others(scores, found) + _others(scores, found)
    both = float(settings["alpha"]) * target + float(settings["beta"]) * other
    return torch.where(found.has_gold, both, 0) * scores.temperature**2


def _nkd(scores: Scores, settings: Settings) -> Float[Tensor, " N"]:
    """The gold id's part at temperature 1, the others' at the temperature."""
    found = apart(scores)
    targets, p_gold = scores.targets, found.p_gold
    if scores.temperature != 1:
        p_plain = targets.logprobs.to(p_gold.dtype).exp()
        p_gold, _ = _gold_probability(scores, p_plain, targets.gold_logprobs)
    gold = -p_gold * scores.plain.gold.clamp_min(FLOOR)
    others = float(settings["gamma"]) * _others(scores, found) * scores.temperature**2
    return torch.where(found.has_gold, gold + others, 0)


LOSSES = (
    Loss(
        name="dkd",
        formula="alpha KL(gold or not) + beta KL(p / (1 - p_gold) || q / (1 - q_gold)) over the others",
        paper="arXiv:2203.08679",
        kind=LINEAR,
        without_entropy="lacks a constant",
        on_draws=_ON_DRAWS,
        parameters={"alpha": Parameter.at_least_0(1.0), "beta": Parameter.at_least_0(8.0)},
        softmax=_dkd,
        passes=2,
        per="labelled",
        stores=("gold",),
        softens=True,
    ),
    Loss(
        name="nkd",
        formula="-p_gold log q_gold at T = 1, - gamma T^2 sum over others of p / (1 - p_gold) log(q / (1 - q_gold))",
        paper="arXiv:2303.13005",
        kind=LINEAR,
        on_draws=_ON_DRAWS,
        parameters={"gamma": Parameter.at_least_0(1.5)},
        softmax=_nkd,
        passes=2,
        per="labelled",
        stores=("gold",),
        softens=True,
    ),
)
