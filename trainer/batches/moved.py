"""What the teacher says of places in a context, as places among a student's own tokens.

A place is moved as a whole: the probability of a token of the teacher's goes to the student's token that holds it, so
the mass of several is added up. What the student does not read goes to the tail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from trainer.batches.targets import StackedTargets, class_tensor
from trainer.losses.targets import NO_LABEL, SparseTargets
from trainer.reading.contexts import NOWHERE


def moved_targets(
    told: StackedTargets, rows: Rows, read: Rows, moves: Int64[np.ndarray, "2 T"]
) -> StackedTargets:
    """The same, of the student's tokens in the rows that it has `read`; `rows` are the cache's own."""
    targets: Any = told.all
    number = len(targets.tail)
    owner = np.repeat(np.arange(number), np.diff(told.entry_offsets))
    ids, mass = _moved(rows, moves, owner, targets.ids.numpy()), targets.weights.double().numpy()
    is_read = ids != NOWHERE
    tail = targets.tail.double().numpy() + np.bincount(owner[~is_read], mass[~is_read], number)
    plain = targets.logprobs.double().exp().numpy()
    owner, ids, (mass, plain) = _added(owner[is_read], ids[is_read], [mass[is_read], plain[is_read]])
    counts = np.bincount(owner, minlength=number)
    gold = targets.gold.numpy().copy()
    known = np.flatnonzero(gold != NO_LABEL)
    places = _moved(rows, moves, known, gold[known])
    gold[known] = np.where(places == NOWHERE, NO_LABEL, places)
    with np.errstate(divide="ignore"):
        logprobs = np.log(plain)
    found = SparseTargets(
        ids=torch.from_numpy(ids),
        counts=torch.from_numpy(counts),
        weights=torch.from_numpy(mass).float(),
        logprobs=torch.from_numpy(logprobs).float(),
        logits=None,
        tail=torch.from_numpy(tail).float(),
        negentropy=torch.from_numpy(_negentropy(mass, owner, tail)).float(),
        gold=torch.from_numpy(gold),
        classes=class_tensor(read),
    )
    return StackedTargets(found, offsets_of(counts), None, offsets_of(gold != NO_LABEL))


def _moved(rows: Rows, moves: Array, position: Array, ids: Array) -> Int64[np.ndarray, " E"]:
    """Ids that some positions have among the teacher's tokens, among the student's."""
    each = rows.spec.kind.text_positions
    found: Array = moves[position % each, rows.input_ids.offsets[position // each] + ids]
    return found


def _added(owner: Array, ids: Array, values: list[Array]) -> tuple[Array, Array, list[Array]]:
    """Each position's ids once, the likeliest first, by the first of the values."""
    order = np.lexsort((ids, owner))
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (np.diff(owner[order]) != 0) | (np.diff(ids[order]) != 0)
    starts = np.flatnonzero(is_first)
    summed = [np.add.reduceat(each[order], starts) if len(starts) else each for each in values]
    owner, ids = owner[order][starts], ids[order][starts]
    order = np.lexsort((ids, -summed[0], owner))
    return owner[order], ids[order], [each[order] for each in summed]


def _negentropy(mass: Array, owner: Array, tail: Array) -> Float[np.ndarray, " N"]:
    """Sum of m log m over each position's entries and its tail."""
    terms = np.bincount(owner, _times_log(mass), len(tail))
    found: Array = terms + _times_log(tail)
    return found


def _times_log(mass: Array) -> Array:
    found: Array = np.where(mass > 0, mass * np.log(np.where(mass > 0, mass, 1.0)), 0.0)
    return found
