"""Losses over a list: the scores that one query's passages have beside each other, and not each for itself."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from schemas.errors import StudentError
from trainer.losses.loss import Asked, Kind, Loss, Settings
from trainer.losses.scores import DenseScores
from trainer.losses.worth import of_cut


def _margins(scores: DenseScores, settings: Settings) -> Float[Tensor, " N"]:
    """Of each passage the mean over the others; 0 where there is none."""
    apart = (scores.logits - scores.targets.logits).squeeze(-1)
    row, number = _lists(scores)
    size = _sums(torch.ones_like(apart), row, number)[row]
    total, squares = _sums(apart, row, number)[row], _sums(apart * apart, row, number)[row]
    return (size * apart * apart - 2 * apart * total + squares) / (size - 1).clamp_min(1)


def _listwise(scores: DenseScores, settings: Settings) -> Float[Tensor, " N"]:
    """Each passage's part of its list's KL divergence, times T squared."""
    row, number = _lists(scores)
    log_p, log_q = (
        _log_softmax(logits.squeeze(-1) / scores.temperature, row, number)
        for logits in (scores.targets.logits, scores.logits)
    )
    return log_p.exp() * (log_p - log_q) * scores.temperature**2


def _lists(scores: DenseScores) -> tuple[Tensor, int]:
    """The list of each position, from 0, and how many there are."""
    row = scores.targets.row
    return row, int(row[-1]) + 1 if len(row) else 0


def _sums(values: Float[Tensor, " N"], row: Tensor, number: int) -> Float[Tensor, " Q"]:
    return values.new_zeros(number).index_add(0, row, values)


def _log_softmax(logits: Float[Tensor, " N"], row: Tensor, number: int) -> Float[Tensor, " N"]:
    """Over each list."""
    least = torch.finfo(logits.dtype).min
    top = logits.detach().new_full((number,), least).scatter_reduce(0, row, logits.detach(), "amax")
    centred = logits - top[row]
    return centred - _sums(centred.exp(), row, number).log()[row]


def _lists_only(asked: Asked) -> StudentError | None:
    if asked.spec.kind.holds_texts:
        return None
    return asked.error(
        "compares the scores of a list, and this cache's rows are single texts",
        got=asked.spec.task,
        do="Use --losses mse_logits=1.0, or a cache of --task pair-score",
    )


LISTS = Kind(
    name="lists of texts",
    served_by="caches whose rows hold a list each: `pair-score`",
    refusal=_lists_only,
    worth=of_cut,
    from_entries=False,
)
LOSSES = (
    Loss(
        name="margin_mse",
        formula="mean ((s_i - s_j) - (t_i - t_j))^2 over pairs of a list",
        paper="arXiv:2010.02666",
        kind=LISTS,
        identity=_margins,
    ),
    Loss(
        name="listwise_kl",
        formula="sum p log(p / q), softmax over a list's scores",
        paper="doi:10.1145/1273496.1273513",
        kind=LISTS,
        identity=_listwise,
        per="examples",
        softens=True,
    ),
)
