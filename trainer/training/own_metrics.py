"""What `compute_metrics` is given: a student's logits at every held-out position, gathered while it is evaluated.

They are float32 on the CPU, `[N, V]`; of a language model that is gigabytes, unless `preprocess_logits_for_metrics`
makes less of each batch. Beyond `MOST_BYTES` an evaluation is refused rather than the machine's memory used up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from schemas.errors import UsageError, nearest
from schemas.rows.ragged import Array
from trainer.batches.batch import Batch
from trainer.losses.targets import DenseTargets, SparseTargets, first_ids, only_classes
from trainer.training.own_parts import OwnParts

MOST_BYTES = 2**33
"""What may be gathered on a rank."""


class Predictions(EvalPrediction):  # type: ignore[misc]
    """As transformers' own, which may be unpacked into predictions and labels; and what the teacher says there."""

    def __init__(
        self, predictions: Array | tuple[Array, ...], label_ids: Array, teacher_ids: Array | None
    ) -> None:
        super().__init__(predictions=predictions, label_ids=label_ids)
        self.teacher_ids = teacher_ids
        """Of a softmax teacher the likeliest id at each position; -1 where the student has none of its ids."""


class Gathered:
    """Of one evaluation."""

    def __init__(self, own: OwnParts) -> None:
        assert own.compute_metrics is not None
        self._compute, self._preprocess = own.compute_metrics, own.preprocess_logits_for_metrics
        self._parts: list[tuple[Any, Array, Array | None]] = []
        self._bytes = 0

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Takes a batch's logits `[N, V]`; of one that counts for nothing, none.

        Raises:
            UsageError: they are too many to hold.
        """
        if not batch.counts[-1]:
            return
        targets, teacher = batch.targets, None
        if isinstance(targets, SparseTargets):
            logits, teacher = only_classes(logits, targets.classes), _array(first_ids(targets))
        labels = gold_of(targets)
        kept: Any = logits if self._preprocess is None else self._preprocess(logits, labels)
        parts = tuple(map(_array, kept)) if isinstance(kept, tuple | list) else _array(kept)
        self._bytes += sum(part.nbytes for part in (parts if isinstance(parts, tuple) else (parts,)))
        if self._bytes > MOST_BYTES:
            raise UsageError(
                "compute_metrics would be given more than is held in memory",
                expected=f"at most {MOST_BYTES:,} bytes a rank",
                got=f"{self._bytes:,} of the batches so far",
                do="Give preprocess_logits_for_metrics, for instance lambda logits, labels: logits.argmax(-1)",
            )
        self._parts.append((parts, _array(labels), teacher))

    def metrics(self, taken: Sequence[str], *, world_size: int) -> dict[str, float]:
        """What the caller's function makes of all, over all ranks; `taken` are names that it may not give.

        Raises:
            UsageError: it gives no numbers by name.
        """
        parts = self._parts
        if world_size > 1:
            box: list[Any] = [None] * world_size
            torch.distributed.all_gather_object(box, parts)
            parts = [part for rank in box for part in rank]
        kept, labels, teacher = zip(*parts, strict=True)
        ids = None if teacher[0] is None else np.concatenate(teacher)
        predictions = (
            tuple(map(joined, zip(*kept, strict=True))) if isinstance(kept[0], tuple) else joined(kept)
        )
        found = self._compute(Predictions(predictions, joined(labels), ids))
        return numbers(found, taken)


def gold_of(targets: Any) -> Tensor:
    """The corpus's own labels: ids with -100 where there are none; of several classes or values NaN, and a single
    value a position without its last axis."""
    if not isinstance(targets, DenseTargets):
        gold: Tensor = targets.gold
        return gold
    found = targets.gold.masked_fill(~targets.labelled[:, None], float("nan"))
    return found[:, 0] if found.shape[1] == 1 else found


def joined(parts: Sequence[Array]) -> Array:
    """One after the other; where texts are of several widths, the narrower ones with -inf behind."""
    widths = {part.shape[1:] for part in parts}
    if len(widths) > 1 and all(len(width) == 1 for width in widths):
        widest = max(width[0] for width in widths)
        blank = -np.inf if np.issubdtype(parts[0].dtype, np.floating) else -100
        pads = [((0, 0), (0, widest - part.shape[1])) for part in parts]
        parts = [np.pad(part, pad, constant_values=blank) for part, pad in zip(parts, pads, strict=True)]
    return np.concatenate(parts)


def numbers(found: Any, taken: Sequence[str]) -> dict[str, float]:
    """What was computed, as numbers by name.

    Raises:
        UsageError: it is something else, or a name is taken.
    """
    if not isinstance(found, Mapping):
        raise UsageError(
            "compute_metrics gives numbers by name", expected='{"accuracy": 0.9}', got=type(found).__name__
        )
    told = {}
    for name, value in found.items():
        own = str(name).removeprefix("eval_")
        if own in taken:
            raise UsageError(
                "compute_metrics gives what is measured already", got=own, do="Call it otherwise"
            )
        try:
            told[own] = float(value)
        except (TypeError, ValueError) as error:
            raise UsageError("compute_metrics gives what is no number", got=f"{name}: {value!r}") from error
    return told


def check_best(asked: str | None, metrics: Mapping[str, float]) -> None:
    """Whether an evaluation has what the best is chosen by.

    Raises:
        UsageError: naming those that it has.
    """
    if asked is not None and asked not in metrics:
        raise UsageError(
            "metric_for_best_model is none that an evaluation gives",
            expected=", ".join(metrics),
            got=asked,
            do=nearest(asked, metrics).strip() or None,
        )


def _array(values: Any) -> Array:
    if not isinstance(values, Tensor):
        found: Array = np.asarray(values)
        return found
    values = values.detach()
    found = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return found  # noqa: RET504  (typed)
