"""A closer look at a student: one position at a time, over a bounded part of the held-out rows.

Calibration is whether it is right as often as it says (arXiv:1706.04599); agreement is told by how sure the teacher
is; and the worst examples are kept with what both find likeliest. Of softmax scores alone.

Cost: a forward over at most `MOST_ROWS` rows, and a top-5 of its logits, which exist in chunks only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from schemas.reports.evaluations import Closer, ConfidenceBin, EntropyBin
from schemas.rows.rows import Rows
from trainer.batches.batch import Batch
from trainer.batches.pool import Pool
from trainer.evaluation.worst import TOP, Worst
from trainer.losses.divergences import kl_divergence
from trainer.losses.fused import CHUNK_ELEMENTS, chunks
from trainer.losses.targets import NO_LABEL, SparseTargets, first_ids, only_classes
from trainer.models.heads import Head, Run
from trainer.stream.order import by_length
from trainer.tasks.student_task import Measured

MOST_ROWS = 2000
CONFIDENCE_BINS, ENTROPY_BINS = 15, 16
NOT_SOFTMAX = "the cache's scores are no distributions over classes"
OTHER_TOKENIZER = "the student has a tokenizer of its own: its positions are not the cache's"


class Seen(NamedTuple):
    """Some positions, on the CPU."""

    loss: Float[np.ndarray, " N"]
    top_ids: Int64[np.ndarray, "N _"]
    top_probabilities: Float[np.ndarray, "N _"]
    """Of the student's likeliest, descending."""
    teacher_id: Int64[np.ndarray, " N"]
    teacher_probability: Float[np.ndarray, " N"]
    gold: Int64[np.ndarray, " N"]
    entropy: Float[np.ndarray, " N"]
    """Of the teacher; NaN where it is not stored."""


def look_closer(measured: Measured, run: Run, batch_size: int, most_rows: int = MOST_ROWS) -> Closer | str:
    """What is seen of the first `most_rows` held-out rows, in the order of ids, which is random; or why nothing is."""
    if measured.spec.score != "softmax":
        return NOT_SOFTMAX
    if measured.collation.reader is not None:
        return OTHER_TOKENIZER
    worst, parts, num_rows, is_whole = Worst(measured), list[Seen](), 0, True
    for rows in measured.held_out.rows():
        taken = rows.take(np.arange(min(len(rows), most_rows - num_rows)))
        is_whole, num_rows = is_whole and len(taken) == len(rows), num_rows + len(taken)
        if not len(taken):
            break
        for chosen, found in _scored(measured, run, taken, batch_size):
            worst.offer(chosen, found)
            parts.append(found)
    seen = Seen(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    gold = seen.gold != NO_LABEL
    right_is: Literal["label", "teacher"] = "label" if gold.any() else "teacher"
    of = gold if right_is == "label" else np.ones(len(gold), np.bool_)
    right = seen.gold if right_is == "label" else seen.teacher_id
    by_label = right_is == "label"
    return Closer(
        rows=num_rows,
        positions=len(seen.loss),
        is_whole=is_whole,
        right_is=right_is,
        student=confidence_bins(seen.top_probabilities[of, 0], (seen.top_ids[:, 0] == right)[of]),
        teacher=confidence_bins(seen.teacher_probability[of], (seen.teacher_id == right)[of])
        if by_label
        else (),
        by_entropy=entropy_bins(seen, measured.spec.vocab_size) if not np.isnan(seen.entropy).any() else (),
        worst=worst.found(),
    )


def confidence_bins(
    confidence: Float[np.ndarray, " N"], right: Bool[np.ndarray, " N"]
) -> tuple[ConfidenceBin, ...]:
    """Positions by confidence, in parts of equal width; empty ones left out."""
    places = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    parts = [(confidence[places == n], right[places == n]) for n in range(CONFIDENCE_BINS)]
    return tuple(
        ConfidenceBin(positions=len(sure), confidence=float(sure.mean()), accuracy=float(is_right.mean()))
        for sure, is_right in parts
        if len(sure)
    )


def entropy_bins(seen: Seen, vocab_size: int) -> tuple[EntropyBin, ...]:
    """Positions by the teacher's entropy, in parts of equal width up to log V; empty ones left out."""
    width = math.log(max(2, vocab_size)) / ENTROPY_BINS
    places = np.clip((seen.entropy / width).astype(np.int64), 0, ENTROPY_BINS - 1)
    agrees = seen.top_ids[:, 0] == seen.teacher_id
    return tuple(
        EntropyBin(
            low_nats=n * width,
            high_nats=(n + 1) * width,
            positions=int(own.sum()),
            agreement=float(agrees[own].mean()),
            kl_nats=float(seen.loss[own].mean()),
        )
        for n in range(ENTROPY_BINS)
        if (own := places == n).any()
    )


def _scored(measured: Measured, run: Run, rows: Rows, batch_size: int) -> Iterator[tuple[Rows, Seen]]:
    """Rows of like length together, with what is seen of their positions."""
    pool = Pool([(rows, np.arange(len(rows)))])
    cuts = by_length(pool.lengths, batch_size)
    for cut, batch in zip(cuts, measured.collation.each(pool, cuts), strict=True):
        chosen = rows.take(cut)
        yield chosen, _seen(measured, run, chosen, batch)


@torch.no_grad()
def _seen(measured: Measured, run: Run, rows: Rows, batch: Batch) -> Seen:
    targets = batch.targets
    assert isinstance(targets, SparseTargets)
    parts = [
        (kl_divergence(logits, part, 1.0).cpu(), *_likeliest(logits))
        for logits, part in _logits(measured, run, batch)
    ]
    loss, ids, probabilities = (torch.cat(column) for column in zip(*parts, strict=True))
    has_entropy = "entropy" in measured.spec.scalars
    return Seen(
        loss=loss.double().numpy(),
        top_ids=ids.numpy(),
        top_probabilities=probabilities.double().numpy(),
        teacher_id=first_ids(targets).numpy(),
        teacher_probability=np.exp(rows.top_logprob().astype(np.float64)),
        gold=targets.gold.numpy(),
        entropy=rows.entropy().astype(np.float64) if has_entropy else np.full(len(loss), np.nan),
    )


def _likeliest(logits: Float[Tensor, "N V"]) -> tuple[Tensor, Tensor]:
    probabilities, ids = logits.softmax(-1).topk(min(TOP, logits.shape[-1]))
    return ids.cpu(), probabilities.cpu()


def _logits(measured: Measured, run: Run, batch: Batch) -> Iterator[tuple[Tensor, SparseTargets]]:
    """All positions of a batch, in chunks where a head is applied to their states."""
    on_device = batch.to(measured.device)
    targets, offsets = on_device.targets, batch.entry_offsets
    assert isinstance(targets, SparseTargets)
    ran = run(measured.model, on_device.model_inputs, (), -1)
    if ran.head_inputs is None:
        assert ran.logits is not None
        yield only_classes(on_device.at_positions(ran.logits).float(), targets.classes), targets
        return
    head, states = Head.of(measured.model), on_device.at_positions(ran.head_inputs)
    for first, last in chunks(len(states), len(head.weight), CHUNK_ELEMENTS):
        part = targets.chunk(first, last, slice(int(offsets[first]), int(offsets[last])))
        yield head.logits(states[first:last]).float(), part
