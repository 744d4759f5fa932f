"""What a teacher and the corpus say of a batch's positions: the values that every loss on the head is a function of.

Softmax teachers are sparse: `[N, V]` is never built for the teacher. What is not kept of it is one *tail bucket*, the
mass of all other ids together. A sampling policy's entries are weighted without bias, and have no tail. Sigmoid and
identity teachers have few classes; they are dense `[N, V]`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from schemas.rows.classes import NO_CLASS

NO_LABEL = -100
"""The gold label of a position that has none."""

TINY = 1e-30
"""Smallest mass that a student's tail is taken to have: its logarithm stays finite."""


Places = slice | Int64[Tensor, " _"]
"""Of which positions, or entries."""


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """What a softmax teacher and the corpus say of N positions, at one temperature."""

    kept_ids: Int[Tensor, " E"]
    """Of any whole numbers, int32 as the cache has them; one position's after the other's."""
    counts: Int64[Tensor, " N"]
    """How many of the entries each position has."""
    weights: Float[Tensor, " E"]
    """At the temperature. Probabilities, which sum to 1 for each position with the tail; or a sampling policy's
    weights, which do so in expectation."""
    logprobs: Float[Tensor, " E"]
    """The entries' own log-probabilities at temperature 1; NaN where the cache does not store a drawn entry's."""
    logits: Float[Tensor, " E"] | None
    """The teacher's own logits (temperature 1), NaN as `logprobs`; None where the cache cannot tell them."""
    tail: Float[Tensor, " N"]
    """Probability of all ids that are not kept; exactly 0 where every id is, and where entries are drawn."""
    negentropy: Float[Tensor, " N"]
    """Sum of p log p over the teacher's outcomes in nats, or its estimate; 0 where it is not known."""
    gold: Int64[Tensor, " N"]
    """The corpus's own label, or `NO_LABEL`."""
    drawn: bool = False
    """Whether entries are drawn, and weigh without bias."""
    softened: Float[Tensor, " E"] | None = None
    """The entries' own log-probabilities at the temperature, where that is not 1 and entries are drawn."""
    gold_logprobs: Float[Tensor, " N"] | None = None
    """The teacher's log-probability of the gold id at temperature 1, NaN without one; None where no loss asks."""
    gold_softened: Float[Tensor, " N"] | None = None
    """The same at the temperature."""
    entropy: Float[Tensor, " N"] | None = None
    """The teacher's entropy over all V ids at temperature 1, in nats; None where no loss asks for it."""
    students: Bool[Tensor, " N"] | None = None
    """Which positions are of a text that the student wrote; None: no loss asks."""
    classes: Bool[Tensor, "N V"] | None = None
    """Which ids each position may be, where rows have classes of their own; None: all."""

    @functools.cached_property
    def ids(self) -> Int64[Tensor, " E"]:
        """The same as torch looks up by them."""
        return self.kept_ids.long()

    @functools.cached_property
    def position(self) -> Int64[Tensor, " E"]:
        """Which of the N positions each entry belongs to; ascending. Made where it is asked for: a batch is moved
        without it, and a chunk's begin at 0 by themselves."""
        return torch.repeat_interleave(self.counts, output_size=len(self.ids))

    def chunk(self, first: int, last: int, entries: slice) -> SparseTargets:
        """Positions `first` to `last`, whose entries are those of the slice."""
        return self.part(slice(first, last), entries)

    def part(self, positions: Places, entries: Places) -> SparseTargets:
        """The same of some positions and of their entries."""
        return SparseTargets(
            drawn=self.drawn,
            **{name: _part(getattr(self, name), entries) for name in _OF_ENTRIES},
            **{name: _part(getattr(self, name), positions) for name in _OF_POSITIONS},
        )

    def split(self, positions: Sequence[int], entries: Sequence[int]) -> Iterator[SparseTargets]:
        """So many positions and entries at a time, one after the other. For a fraction of what `part` costs."""
        columns = {name: _split(getattr(self, name), entries) for name in _OF_ENTRIES}
        columns |= {name: _split(getattr(self, name), positions) for name in _OF_POSITIONS}
        for values in zip(*columns.values(), strict=True):
            yield SparseTargets(drawn=self.drawn, **dict(zip(columns, values, strict=True)))


_OF_ENTRIES = ("kept_ids", "weights", "logprobs", "logits", "softened")
_OF_POSITIONS = (
    *("counts", "tail", "negentropy", "gold", "gold_logprobs", "gold_softened", "entropy", "students"),
    "classes",
)


@dataclass(frozen=True, kw_only=True)
class DenseTargets:
    """What a sigmoid or identity teacher and the corpus say of N positions."""

    logits: Float[Tensor, "N V"]
    gold: Float[Tensor, "N V"]
    """Multi-hot labels or values; 0 where there are none."""
    labelled: Bool[Tensor, " N"]
    row: Int64[Tensor, " N"]
    """Which example each is of, ascending from 0."""

    @classmethod
    def joined(cls, parts: Sequence[DenseTargets]) -> DenseTargets:
        """The positions of several, one after the other; their examples are counted on."""
        ends = itertools.accumulate((int(part.row[-1:].sum()) + 1 for part in parts), initial=0)
        return cls(
            logits=torch.cat([part.logits for part in parts]),
            gold=torch.cat([part.gold for part in parts]),
            labelled=torch.cat([part.labelled for part in parts]),
            row=torch.cat([part.row + end for part, end in zip(parts, ends, strict=False)]),
        )

    def chunk(self, first: int, last: int) -> DenseTargets:
        """Positions `first` to `last`."""
        parts = (part[first:last] for part in (self.logits, self.gold, self.labelled, self.row))
        logits, gold, labelled, row = parts
        return DenseTargets(logits=logits, gold=gold, labelled=labelled, row=row - row[:1])


def only_classes(logits: Float[Tensor, "N S"], classes: Bool[Tensor, "N V"] | None) -> Float[Tensor, "N V"]:
    """A student's logits of the ids that each position may be, in float32 at least; of S <= V, the others are none."""
    if classes is None:
        return logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wide = torch.nn.functional.pad(logits, (0, classes.shape[-1] - logits.shape[-1]))
    return wide.masked_fill(~classes, NO_CLASS)


def segment_sum(
    values: Float[Tensor, " E"], position: Int64[Tensor, " E"], num_positions: int
) -> Float[Tensor, " N"]:
    """Sum of the entries of each position."""
    return values.new_zeros(num_positions).index_add(0, position, values)


def mean_outputs(
    targets: SparseTargets | DenseTargets,
    example: Int64[Tensor, " N"],
    shape: tuple[int, int],
    *,
    score: str,
    temperature: float,
) -> Float[Tensor, "B V"]:
    """What a teacher says of each of B examples, the mean over its positions: kept ids' weights at the targets' own
    temperature, which under draws are right in the mean; of a sigmoid teacher probabilities, of any other values."""
    if isinstance(targets, SparseTargets):
        whole = targets.weights.new_zeros(shape[0] * shape[1])
        whole.index_add_(0, example[targets.position] * shape[1] + targets.ids, targets.weights)
        found = whole.view(shape)
    else:
        values = (targets.logits / temperature).sigmoid() if score == "sigmoid" else targets.logits
        found = values.new_zeros(shape).index_add_(0, example, values)
    return found / torch.bincount(example, minlength=shape[0]).clamp_min(1)[:, None]


def first_ids(targets: SparseTargets) -> Int64[Tensor, " N"]:
    """The teacher's most probable id at each position, int64 [N]; -1 where the student has none of its ids."""
    ids = torch.full_like(targets.gold, -1)
    first = torch.ones_like(targets.position, dtype=torch.bool)
    first[1:] = targets.position[1:] != targets.position[:-1]
    ids[targets.position[first]] = targets.ids[first]
    return ids


def _part(values: Tensor | None, part: Places) -> Any:
    return None if values is None else values[part]


def _split(values: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if values is None else torch.split(values, list(sizes))
