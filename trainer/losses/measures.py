"""What is logged of a chunk beside its losses, from what they have computed already: it costs no pass over `[N, V]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Bool, Float
from torch import Tensor

from trainer.losses.scores import Scores
from trainer.losses.targets import first_ids


def agreement(scores: Scores) -> Bool[Tensor, " N"]:
    """Whether the student's likeliest id is the teacher's, of those that the student has; not where none is kept. Where
    entries are drawn that is the one with the largest weight."""
    return scores.best == first_ids(scores.targets)


def teacher_entropy(scores: Scores) -> Float[Tensor, " N"]:
    """In nats, at the losses' temperature; of a cut distribution with its tail as one outcome."""
    return -scores.targets.negentropy


MEASURES: Mapping[str, Callable[[Scores], Tensor]] = {
    "agreement": agreement,
    "teacher_entropy": teacher_entropy,
}
