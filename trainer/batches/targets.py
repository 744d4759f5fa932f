"""What the teacher and the corpus say of a batch's positions, from a cache's rows.

Entries of an exact policy are probabilities, and what they lack is the tail. Those of a sampling policy are weights:
they are taken as they are, whatever their sum, because dividing or clipping would bias them. Ids that the student
lacks are then left out, and their share of the gradient with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from schemas.rows import kernels
from schemas.rows.classes import bounds, class_mask
from schemas.rows.columns import OBJECT_CLASSES
from schemas.rows.entries import softened
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from trainer.batches.entries import Entries
from trainer.batches.kernels import settle as compiled_settle
from trainer.losses.targets import NO_LABEL, DenseTargets, SparseTargets


def sparse_targets(
    rows: Rows, entries: Entries, gold: Array, *, student_vocab: int, temperature: float
) -> tuple[SparseTargets, Array, Array | None]:
    """The targets of a softmax teacher, each position's offset in its entries, and its mass beyond the student's V."""
    own, beyond = entries, None
    fits: Array | EllipsisType = ...
    if student_vocab < rows.spec.vocab_size:
        fits = entries.ids < student_vocab
        mass = (
            np.exp(entries.logprobs)
            if entries.weights is None or not rows.spec.is_sampling
            else entries.weights
        )
        own, beyond = _within(entries, mass, fits)
    logprobs = torch.from_numpy(own.logprobs)
    if rows.spec.is_sampling:
        tail, negentropy = np.zeros(len(own.counts), np.float32), _negentropy(rows, own, fits, temperature)
        weights = own.weights
    elif own.sums is not None and temperature == 1 and not rows.spec.kind.classes_are_tokens:
        weights, (tail, negentropy) = own.weights, own.sums
    else:
        whole = own.counts == np.minimum(student_vocab, rows.class_counts)
        weights, tail, negentropy = distribution(_at(rows, entries, temperature)[fits], own.counts, whole)
    targets = SparseTargets(
        kept_ids=torch.from_numpy(own.ids),
        counts=torch.from_numpy(own.counts),
        weights=torch.from_numpy(weights),
        logprobs=logprobs,
        logits=_logits(rows, logprobs, own.counts),
        tail=torch.from_numpy(tail),
        negentropy=torch.from_numpy(negentropy),
        gold=torch.from_numpy(gold),
        classes=class_tensor(rows),
    )
    return targets, offsets_of(own.counts), beyond


def class_tensor(rows: Rows) -> Tensor | None:
    """Which ids each position may be, bool [N, V]; None where all are what any may be."""
    if not rows.spec.kind.classes_are_tokens:
        return None
    mask = class_mask(rows.spec, *bounds(rows.spec, rows.data))
    return torch.from_numpy(np.repeat(mask, np.diff(rows.position_offsets), axis=0))


def _within(entries: Entries, mass: Array, fits: Array) -> tuple[Entries, Array]:
    """The entries that fit, and each position's mass of those that do not."""
    number = len(entries.counts)
    owner = np.repeat(np.arange(number), entries.counts)
    return Entries(
        ids=entries.ids[fits],
        counts=np.bincount(owner[fits], minlength=number),
        logprobs=entries.logprobs[fits],
        weights=None if entries.weights is None else entries.weights[fits],
        sums=None,
    ), np.bincount(owner[~fits], mass[~fits], number)


def distribution(
    logprobs: Float[np.ndarray, " E"], counts: Int64[np.ndarray, " N"], whole: Bool[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Probabilities, tail and negentropy (nats) of N positions from kept log-probabilities, `counts[n]` each.

    The tail is `max(0, 1 - sum p)`. Entries are divided by their sum where that is above 1 (rounding), and where
    `whole` says that every id is kept.
    """
    if whole.any():
        top = segments(np.maximum, logprobs, counts)
        logprobs = logprobs - np.repeat(np.where(whole & np.isfinite(top), top, np.float32(0)), counts)
    probs = np.exp(logprobs)
    found = np.empty((2, len(counts)), probs.dtype)
    is_compiled = kernels.IS_COMPILED and probs.dtype == np.float32
    (compiled_settle if is_compiled else settle)(probs, logprobs, counts, whole, found)
    return probs, found[0], found[1]


def settle(probs: Array, logprobs: Array, counts: Array, whole: Array, found: Array) -> None:
    """As the compiled loop, with sums of float32."""
    mass, terms = segments(np.add, probs, counts), segments(np.add, _weighted(probs, logprobs), counts)
    divisor = np.where(whole & (mass > 0), mass, np.maximum(mass, np.float32(1)))
    if (divisor != 1).any():
        probs /= np.repeat(divisor, counts)
    kept = mass / divisor
    tail = np.where(whole, np.float32(0), np.maximum(1 - kept, np.float32(0)))
    found[0], found[1] = tail, terms / divisor - kept * np.log(divisor) + _weighted(tail, _log(tail))


def segments(
    ufunc: np.ufunc, values: Float[np.ndarray, " E"], counts: Int64[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Each position's values reduced to one; 0 where a position has none."""
    found = np.zeros(len(counts), values.dtype)
    filled = counts > 0
    if filled.any():
        found[filled] = ufunc.reduceat(values, (np.cumsum(counts) - counts)[filled])
    return found


def _weighted(probs: Array, logarithms: Array) -> Array:
    """`p log p`, 0 where p is."""
    with np.errstate(invalid="ignore"):
        found: Array = probs * logarithms
    return found if np.isfinite(found).all() else np.where(probs > 0, found, np.float32(0))


def _log(probs: Array) -> Array:
    with np.errstate(divide="ignore"):
        found: Array = np.log(probs)
    return found


def _negentropy(rows: Rows, entries: Entries, fits: Array | EllipsisType, temperature: float) -> Array:
    """The teacher's, where the cache stores its entropy; else `sum w log p`, which is unbiased; else 0. Float32 [N], of
    the entries that fit."""
    if temperature == 1 and "entropy" in rows.spec.scalars and fits is ...:
        return -rows.entropy()
    if not rows.spec.own_logits:
        return np.zeros(len(entries.counts), np.float32)
    if temperature == 1 and entries.sums is not None:
        found: Array = entries.sums[1]
        return found
    assert entries.weights is not None  # of a sampling policy
    terms = entries.weights * softened(rows, entries.logprobs, entries.counts, temperature)
    return segments(np.add, terms, entries.counts)


def _at(rows: Rows, entries: Entries, temperature: float) -> Array:
    """Log-probabilities at T, float32 [E]; at one that is not declared without their normaliser, which positions that
    are kept whole do not need."""
    if temperature in rows.spec.temperatures:
        return softened(rows, entries.logprobs, entries.counts, temperature)
    return entries.logprobs / np.float32(temperature)


def _logits(rows: Rows, logprobs: Tensor, counts: Array) -> Tensor | None:
    """The teacher's own logits, where the cache stores what they lack."""
    if "logsumexp" not in rows.spec.scalars:
        return None
    return logprobs + torch.from_numpy(np.repeat(rows.logsumexp(), counts))


def gold_ids(rows: Rows) -> Int64[np.ndarray, " N"]:
    """The gold id, or class, of each position; `NO_LABEL` in rows without. Where rows have objects, no object, until
    a student's queries are matched with them."""
    if rows.spec.kind.has_boxes:
        known = np.repeat(rows.ragged(OBJECT_CLASSES).validity, np.diff(rows.position_offsets))
        nothing: Array = np.where(known, rows.spec.vocab_size - 1, NO_LABEL)
        return nothing
    labels = rows.gold_ids()
    if labels.valid is None:
        found: Array = labels.values.astype(np.int64)
        return found
    gold = np.full(rows.num_positions, NO_LABEL, np.int64)
    gold[np.repeat(labels.validity, np.diff(rows.position_offsets))] = labels.values
    return gold


def dense_targets(rows: Rows) -> DenseTargets:
    """Logits and labels `[N, V]` of a sigmoid or identity teacher; nothing, where nothing is scored."""
    if not rows.spec.kind.has_positions:
        nothing = torch.zeros(0, 0)
        return DenseTargets(
            logits=nothing, gold=nothing, labelled=torch.zeros(0).bool(), row=torch.zeros(0).long()
        )
    labels, offsets = rows.ragged("labels"), rows.position_offsets
    shape = (int(offsets[-1]), rows.spec.vocab_size)
    labelled = np.repeat(labels.validity, np.diff(offsets))
    gold = np.zeros(shape, np.float32)
    if rows.spec.kind.has_boxes:
        labelled = np.repeat(rows.ragged(OBJECT_CLASSES).validity, np.diff(offsets))
    else:
        gold[labelled] = labels.values.reshape(-1, shape[1])
    return DenseTargets(
        logits=torch.from_numpy(rows.ragged("logits").values.reshape(shape).copy()),
        gold=torch.from_numpy(gold),
        labelled=torch.from_numpy(labelled),
        row=torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(offsets))),
    )


def example_keys(rows: Rows) -> Int64[Tensor, " B"]:
    """The first 64 bits of each row's example id."""
    return torch.from_numpy(rows.array("example_id")[:, :8].copy().view(np.int64)[:, 0])


class StackedTargets(NamedTuple):
    """What the teacher says of several batches' positions."""

    all: SparseTargets | DenseTargets
    entry_offsets: Array
    beyond: Array | None
    labelled: Array
    """How many of the positions before each have a label, `[N + 1]`."""

    def by(self, students: Array) -> StackedTargets:
        """With what is said of each position's text: whether the student wrote it."""
        assert isinstance(self.all, SparseTargets)  # the loss was refused else
        return self._replace(all=replace(self.all, students=torch.from_numpy(students)))

    def cuts(self, edges: Sequence[int], rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The fields of each batch, whose positions begin at these edges, and which has so many rows."""
        offsets, sizes = self.entry_offsets, np.diff(edges)
        counts = torch.from_numpy(np.stack([sizes, np.diff(self.labelled[edges]), rows], axis=1))
        if isinstance(self.all, SparseTargets):
            entries = np.diff(offsets[edges]).tolist()
            parts: Iterator[Any] = self.all.split(sizes.tolist(), entries)
        else:
            parts = map(self.all.chunk, edges[:-1], edges[1:])
        for first, last, own, targets in zip(edges[:-1], edges[1:], counts.unbind(), parts, strict=True):
            yield {
                "targets": targets,
                "counts": own,
                "entry_offsets": offsets[first : last + 1] - offsets[first],
                "beyond": None if self.beyond is None else float(self.beyond[first:last].sum()),
            }
