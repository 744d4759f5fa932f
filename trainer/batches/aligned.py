"""What the teacher says of a student's own tokens, in chunks, from a cache's rows and how they were read again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from schemas.policies import KeepAll
from schemas.rows.ragged import Array, Ragged, offsets_of, spans
from schemas.rows.rows import Rows
from schemas.spec import Spec
from trainer.batches.stored import gold_logprobs
from trainer.batches.targets import StackedTargets
from trainer.losses.aligned_targets import NO_CHUNK, AlignedTargets, HostChunks
from trainer.losses.targets import SparseTargets, segment_sum
from trainer.reading.alignment import Alignment
from trainer.reading.reader import Reader, Reading

LIKELIHOOD, PROJECTION, WORD_START = "likelihood", "projection", "word_start"


def has_entries(reader: Reader | None, stored: Collection[str]) -> bool:
    """Whether any kept entry has a part in a batch."""
    if reader is None or not reader.aligns or PROJECTION in stored:
        return True
    return LIKELIHOOD in stored and "gold" not in reader.spec.scalars


def knows_likelihood(spec: Spec) -> bool:
    """Whether a cache has the teacher's log-probability of its texts."""
    return "gold" in spec.scalars or isinstance(spec.keep, KeepAll)


class StackedAligned(NamedTuple):
    """What the teacher says of several batches' tokens and chunks."""

    all: AlignedTargets

    def cuts(self, edges: Sequence[int], rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The fields of each batch, whose tokens begin at these edges, and which has so many rows."""
        for first, last, number in zip(edges[:-1], edges[1:], rows, strict=True):
            targets = self.all.part(first, last)
            yield {
                "targets": targets,
                "counts": torch.tensor([len(targets.begins), last - first, number]),
                "entry_offsets": targets.host.entries,
                "beyond": None,
            }


def aligned_targets(
    rows: Rows, reading: Reading, reader: Reader, tell: Callable[[], StackedTargets], stored: Collection[str]
) -> StackedAligned:
    """Of these rows, which a student has read otherwise; `tell` gives what the cache says of all N positions, where
    that is asked for."""
    alignment, ids = reading.alignment, reading.rows.input_ids
    assert alignment is not None
    projection = reader.projection if PROJECTION in stored else None
    told = tell() if has_entries(reader, stored) else None
    at = alignment.teacher_begins
    starts, entries = _nothing(len(at)), np.zeros(len(at) + 1, np.int64)
    if told is not None and PROJECTION in stored:
        assert isinstance(told.all, SparseTargets)
        counts = np.diff(told.entry_offsets)[at]
        entries = offsets_of(counts)
        chosen = spans(told.entry_offsets[:-1][at], counts, entries)
        starts = told.all.part(torch.from_numpy(at), torch.from_numpy(chosen))
    owner, pairs = _pairs(starts, projection)
    teacher = np.full(len(at), np.nan, np.float32)
    if LIKELIHOOD in stored:
        teacher = _sums(_gold(rows, told), at, alignment.teacher_ends)
    words = np.full(len(at), np.nan, np.float32)
    if WORD_START in stored:
        goes_on = alignment.goes_on
        words[goes_on] = rows.word_start_logprob()[alignment.teacher_ends[goes_on]]
    return StackedAligned(
        AlignedTargets(
            gold=torch.from_numpy(ids.values[alignment.tokens].astype(np.int64)),
            chunk=torch.from_numpy(_chunk_of(alignment)),
            begins=torch.from_numpy(alignment.begins),
            teacher=torch.from_numpy(teacher),
            num_bytes=torch.from_numpy(alignment.num_bytes),
            ends=torch.from_numpy(alignment.ends),
            word_start=torch.from_numpy(words),
            words=torch.from_numpy(reader.words if WORD_START in stored else np.zeros(0, np.int64)),
            starts=starts,
            pair_entry=owner,
            pair_id=pairs[0],
            host=HostChunks(begins=alignment.begins, ends=alignment.ends, entries=entries, pairs=pairs[1]),
        )
    )


def _sums(values: Array, begins: Array, ends: Array) -> Array:
    """Of each stretch its own sum: one value that is no number spoils no other's."""
    lengths = ends - begins
    owner = np.repeat(np.arange(len(lengths)), lengths)
    own = values[spans(begins, lengths, offsets_of(lengths))]
    return np.bincount(owner, own.astype(np.float64), len(lengths)).astype(np.float32)


def _chunk_of(alignment: Alignment) -> Array:
    found = np.full(len(alignment.tokens), NO_CHUNK, np.int64)
    lengths = alignment.ends - alignment.begins
    at = spans(alignment.begins, lengths, offsets_of(lengths))
    found[at] = np.repeat(np.arange(len(lengths)), lengths)
    return found


def _pairs(
    starts: SparseTargets, projection: Ragged | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, Array]]:
    """Each entry's ids among the student's: the entry of each pair, its id, and where each entry's pairs begin."""
    teacher_ids = starts.ids.numpy()
    if projection is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        return nothing, (nothing, np.zeros(len(teacher_ids) + 1, np.int64))
    counts = projection.lengths[teacher_ids]
    offsets = offsets_of(counts)
    ids = projection.values[spans(projection.offsets[:-1][teacher_ids], counts, offsets)]
    owner = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    return owner, (torch.from_numpy(ids), offsets)


def _gold(rows: Rows, told: StackedTargets | None) -> Array:
    """The teacher's log-probability of each position's next token; where every score is kept it is among them."""
    if "gold" in rows.spec.scalars:
        return gold_logprobs(rows, rows.num_positions)
    assert told is not None
    targets: Any = told.all
    is_gold = targets.ids == targets.gold[targets.position]
    found: Array = segment_sum(
        torch.where(is_gold, targets.logprobs, 0), targets.position, len(targets.gold)
    ).numpy()
    return found


def _nothing(number: int) -> SparseTargets:
    """No entry of any position."""
    ids, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    each = torch.zeros(number)
    gold = torch.zeros(number, dtype=torch.int64)
    return SparseTargets(
        kept_ids=ids,
        counts=torch.zeros(number, dtype=torch.int64),
        weights=values,
        logprobs=values,
        logits=None,
        tail=each,
        negentropy=each,
        gold=gold,
    )
