"""Losses for a student of another tokenizer: by the likelihood of stretches of text, or where tokens begin together.

The teacher's tokens and the student's are aligned by the bytes of the text (`trainer/reading`). With equal tokenizers
every token is a chunk and W the identity, and both are what they are called there: a binary KL of the gold id, and
`kl`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.errors import StudentError
from trainer.losses.aligned_targets import AlignedScores
from trainer.losses.divergences import CROSS_ENTROPY
from trainer.losses.loss import Asked, Kind, Loss, Parameter, Settings
from trainer.losses.worth import of_chunks, of_projected

_SURE = -1e-6
"""The largest log-probability that is told from 0: beyond it a student is sure, and has no gradient."""
_NOTHING = -1000.0
"""A logarithm whose exponential is 0 in float64."""


def _log_rest(values: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """log(1 - exp x) for x < 0, exact at both ends."""
    near = values > -math.log(2)
    safe = torch.where(near, values, -1.0)
    other = torch.where(near, -1.0, values)
    return torch.where(near, torch.log(-torch.expm1(safe)), torch.log1p(-torch.exp(other)))


def chunk_likelihoods(
    ours: Float[Tensor, " C"], theirs: Float[Tensor, " C"], tau: float
) -> Float[Tensor, " C"]:
    """`tau` times the KL of two Bernoullis, with `P = exp(theirs / tau)` and `Q = exp(ours / tau)`: the binary cross
    entropy less the teacher's own, so that it is 0 where they agree. Its gradient goes to that of `ours - theirs log
    ours` as tau grows, so weights keep their meaning (approximate likelihood matching, arXiv:2503.20083)."""
    p, log_q = (theirs / tau).to(ours.dtype), (ours / tau).clamp_max(_SURE)
    p = p.clamp(_NOTHING, 0.0)  # of -inf, too, 0 times itself is 0
    on = p.exp() * (p - log_q)
    rest = -torch.expm1(p)
    off = torch.xlogy(rest, rest) - rest * _log_rest(log_q)
    return tau * (on + off)


def _alm(scores: AlignedScores, settings: Settings) -> Float[Tensor, " C"]:
    """Of chunks behind which the teacher gives a word's begin more than `word`, both likelihoods are of the chunk and
    of that: so a tokenizer's habit of where to cut a word is no difference between them."""
    ours, theirs, words = scores.chunks, scores.targets.teacher, scores.targets.word_start
    follows = words.exp() > float(settings["word"])
    if len(scores.targets.words) and bool(follows.any()):
        ours = ours.masked_scatter(follows, ours[follows] + scores.word_starts(follows).to(ours.dtype))
        theirs = theirs + torch.where(follows, words, 0)
    return chunk_likelihoods(ours, theirs, float(settings["tau"]))


def _ranked(values: Tensor, owner: Int64[Tensor, " P"], number: int) -> Tensor:
    """log sum exp of each owner's values; -inf of one without any."""
    top = values.new_full((number,), -math.inf).scatter_reduce(0, owner, values.detach(), "amax")
    safe = torch.where(top.isfinite(), top, 0)
    total = values.new_zeros(number).index_add(0, owner, (values - safe[owner]).exp())
    return torch.where(total > 0, total, 1).log() + torch.where(total > 0, safe, -math.inf)


def _projected(scores: AlignedScores, settings: Settings) -> Float[Tensor, " C"]:
    """Teacher's ids with which no student's agrees are left out of draws, and of exact entries go to the tail."""
    targets, starts = scores.targets, scores.targets.starts
    number, chunk = len(targets.begins), starts.position
    row = targets.begins[chunk[targets.pair_entry]]
    log_q = scores.logits[row, targets.pair_id] - scores.logsumexp[row]
    weights = starts.weights.to(log_q.dtype)
    projected = _ranked(log_q, targets.pair_entry, len(chunk))
    has_any = projected.isfinite()
    each = torch.where(has_any, weights * torch.where(has_any, projected, 0), 0)
    found = starts.negentropy.to(log_q.dtype) - each.new_zeros(number).index_add(0, chunk, each)
    if starts.drawn or settings["tail"] == "ignore":
        return found
    missed = each.new_zeros(number).index_add(0, chunk, torch.where(has_any, 0, weights))
    return found - (starts.tail.to(log_q.dtype) + missed) * _log_outside(scores)


def _log_outside(scores: AlignedScores) -> Float[Tensor, " C"]:
    """The student's log mass on ids that agree with no kept one; 0 where there are none such."""
    targets = scores.targets
    taken = torch.zeros(
        len(targets.begins), scores.logits.shape[-1], dtype=torch.bool, device=scores.logits.device
    )
    taken[targets.starts.position[targets.pair_entry], targets.pair_id] = True
    rest = scores.logits[targets.begins].masked_fill(taken, -math.inf)
    has_rest = ~taken.all(-1)
    rest = torch.where(has_rest[:, None], rest, 0)
    return torch.where(has_rest, rest.logsumexp(-1) - scores.logsumexp[targets.begins], 0)


def _next_tokens(asked: Asked) -> StudentError | None:
    kind = asked.spec.kind
    if kind.implies_places:
        return None
    return asked.error(
        "aligns the tokens of texts that a language model reads from the left, and this cache holds none",
        expected="a cache of the task causal-lm",
        got=asked.spec.task,
        do="Use --losses kl=1.0",
    )


CHUNKS = Kind(
    name="likelihood of the text",
    served_by="any policy with `--scalars gold`; causal LMs",
    refusal=_next_tokens,
    worth=of_chunks,
    from_entries=False,
)
PROJECTED = Kind(
    name="linear in p, of another vocabulary",
    served_by="any policy; without bias where entries are drawn; causal LMs",
    refusal=_next_tokens,
    worth=of_projected,
)
LOSSES = (
    Loss(
        name="alm",
        formula="tau KL(P, Q) of two outcomes, P = exp(sum log p_gold / tau), Q = exp(sum log q_gold / tau), the sums "
        "over a chunk",
        paper="arXiv:2503.20083",
        kind=CHUNKS,
        parameters={
            "tau": Parameter(default=100.0, low=0.0, high=1e6, beyond=True),
            "word": Parameter(default=0.1, low=0.0, high=1.0),
        },
        aligned=_alm,
        stores=("gold",),
        uses=lambda settings: ("word_start",) if float(settings["word"]) < 1 else (),
        asks="likelihood",
    ),
    Loss(
        name="projected_kl",
        formula="sum p_i log(p_i / sum_s W_si q_s) where tokens begin together",
        paper="arXiv:2605.21699",
        kind=PROJECTED,
        without_entropy=CROSS_ENTROPY,
        parameters={"tail": Parameter(default="bucket", choices=("bucket", "ignore"))},
        aligned=_projected,
        asks="projection",
    ),
)
