"""What a task is to the trainer: the seam. Each member is a file beside this one; `tasks.py` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch

from schemas.rows.rows import Rows
from schemas.spec import Spec
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.metrics.tokens import Metrics
from trainer.models.embeddings import Embedder
from trainer.models.heads import Run


@runtime_checkable
class HeldOut(Protocol):
    """The held-out part of a cache."""

    def batches(self, collation: Collation) -> Iterator[Batch]:
        """All its batches, once."""

    def rows(self) -> Iterator[Rows]:
        """All its rows, once."""


class Measured(NamedTuple):
    """What is measured, and on what."""

    model: Any
    tokenizer: Any
    spec: Spec
    held_out: HeldOut
    collation: Collation
    device: torch.device
    embedder: Embedder | None = None
    """How its states become embeddings, where that is what it gives."""


class Goal(NamedTuple):
    """A metric by which students are compared."""

    metric: str
    is_maximised: bool

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """In Optuna's words."""
        return "maximize" if self.is_maximised else "minimize"


LOSS_ON_TEXT = Goal("cross_entropy_nats", is_maximised=False)
"""What a language model is judged by."""


@dataclass(frozen=True, kw_only=True)
class StudentTask:
    """How a task's students are opened, run and measured."""

    auto: Any
    """The Auto class that opens them."""
    run: Run
    scores: Callable[[Any], torch.Tensor] = lambda output: output.logits
    """From a plain forward's output: of each text, or of each of its tokens, `[B, S, _]`."""
    measure: Callable[[Measured], Metrics]
    goal: Callable[[Spec, bool], Goal]
    """What of its metrics students are compared by: where the held-out rows have labels, and where they have none."""
    peft_task: str | None = None
    """What the PEFT library calls it, in the config of an adapter."""
    generates: bool = False
    """Whether `generate` must go before a student is trained."""
    unused: tuple[str, ...] = ()
    """Words in the names of weights that have no part in any answer: they may be missing, and are not trained."""


def teacher_cross_entropy(measured: Measured) -> Metrics:
    """The teacher's cross entropy with the gold ids, where the cache has it."""
    if "gold" not in measured.spec.scalars:
        return {}
    total, count = 0.0, 0
    for rows in measured.held_out.rows():
        values = rows.gold_logprob().values
        total, count = total - float(values.sum(dtype="float64")), count + len(values)
    return {"teacher_cross_entropy_nats": total / max(1, count)}


def class_goal(spec: Spec, labelled: bool) -> Goal:
    """Of whole texts or images: what is right, or what the teacher says."""
    if spec.score == "identity":
        return Goal("mse" if labelled else "mse_with_teacher", is_maximised=False)
    return Goal("accuracy" if labelled else "agreement", is_maximised=True)
