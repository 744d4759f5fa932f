"""Rows of a cache become a batch of tensors: padded tokens, and flat positions with flat kept entries.

Everything that only depends on the teacher (temperature, tail, negentropy) is computed here, on the CPU, in the
loader's thread; the training step gathers and subtracts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from schemas.features import Feature
from schemas.images import Pictures
from schemas.rows.ragged import Array, offsets_of
from schemas.rows.rows import Rows
from trainer.batches.aligned import LIKELIHOOD, StackedAligned, aligned_targets, has_entries
from trainer.batches.batch import Batch
from trainer.batches.detections import detections_of
from trainer.batches.embeddings import refuse_beyond
from trainer.batches.entries import (
    BATCH_COLUMNS,
    ENTRY_COLUMNS,
    Entries,
    can_gather,
    gather_entries,
    take_entries,
)
from trainer.batches.images import pixels_of
from trainer.batches.join import Join
from trainer.batches.moved import moved_targets
from trainer.batches.packing import Layout, Packing, Stacked
from trainer.batches.pool import Pool
from trainer.batches.sources import Read, Shift
from trainer.batches.stored import with_stored
from trainer.batches.targets import StackedTargets, dense_targets, example_keys, gold_ids, sparse_targets
from trainer.losses.schedules import Warmth
from trainer.losses.targets import NO_LABEL
from trainer.reading.reader import Reader, Reading

TOGETHER = 2**16
"""Tokens of the batches whose targets are made at once, or of one that is larger."""


@dataclass(frozen=True, kw_only=True)
class Collation:
    """How rows become batches for one student and one set of losses."""

    student_vocab: int
    """V of the student's head, or 0. Entries beyond it go to the tail, or are left out where there is none."""
    pad_id: int
    temperature: float = 1.0
    warmth: Warmth | None = None
    """How the temperature changes by step; None where it stays."""
    features: tuple[Feature, ...] = ()
    """Features that the losses need, or the student `reads_features`; others are not decoded."""
    reads_features: bool = False
    stored: frozenset[str] = frozenset()
    """What of a position the losses need beside its entries: of `gold`, `entropy`, `own` and `origin`."""
    pass_token_types: bool = True
    embeddings: int | None = None
    """How many ids the student has embeddings for; None where it looks none up in a table."""
    token_types: int | None = None
    """How many token types it has embeddings for."""
    packing: Packing | None = None
    """How several examples stand in one row; None: each in its own."""
    shift: Shift | None = None
    """What a student of two halves makes of targets for its decoder."""
    join: Join | None = None
    """How what several caches say of a row is one; None: they are not joined."""
    pictures: Pictures | None = None
    """How a cache's images become what the student is given."""

    reader: Reader | None = None
    """How a student of another tokenizer reads the texts; None: as the teacher did."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, but got {self.temperature}")
        if self.student_vocab < 0 or self.pad_id < 0:
            raise ValueError(f"no vocabulary: size {self.student_vocab}, padding id {self.pad_id}")

    def at(self, step: int) -> Collation:
        """For the batches of one step."""
        return self if self.warmth is None else replace(self, temperature=self.warmth.at(step), warmth=None)

    def batch(self, rows: Rows) -> Batch:
        """The batch of these rows, in their order.

        Raises:
            StudentError: an id that the student has no embedding for.
        """
        every = np.arange(len(rows))
        (found,) = self.batches(Pool([(rows, every)]), [every])
        return found

    def each(self, rows: Pool, cuts: Sequence[Int64[np.ndarray, " _"]]) -> Iterator[Batch]:
        """The batch of each cut, one after the other, of which those of `TOGETHER` tokens are made at once.

        Raises:
            StudentError: an id that the student has no embedding for.
        """
        lengths = rows.lengths * (1 if self.pictures is None else self.pictures.tokens)
        ends = np.cumsum([lengths[cut].sum() for cut in cuts])
        first = 0
        while first < len(cuts):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + TOGETHER, side="right")))
            yield from self.batches(rows, cuts[first:last])
            first = last

    def batches(self, rows: Pool, cuts: Sequence[Int64[np.ndarray, " _"]]) -> list[Batch]:
        """One batch of the rows in each cut. What the teacher says is made for all at once, and each batch holds slices
        of it: the same values as apart, for a fraction of the calls.

        Raises:
            StudentError: an id that the student has no embedding for.
        """
        chosen, edges = np.concatenate(cuts), offsets_of(np.array([*map(len, cuts)], np.int64))
        together, reading, targets, features = self._said(rows, chosen, edges)
        sizes = [len(cut) for cut in cuts]
        read = Read.of(reading.rows, edges, reading.alignment)
        layouts = Stacked([self._layout(lengths) for lengths in read.lengths])
        tokens = self._tokens(reading.rows, read, layouts)
        images = None if self.pictures is None else pixels_of(together, self.pictures)
        positions = read.positions[read.edges]
        counts, places = np.diff(positions).tolist(), layouts.positions(read.positions, read.places)
        row, token = (torch.split(one, counts) for one in places)
        columns = (torch.split(one, sizes) for one in features)
        nothing: list[Any] = [None] * len(sizes)
        of_each: dict[str, Any] = {
            "row": row,
            "token": token,
            "example_keys": torch.split(example_keys(together), sizes),
            "features": zip(*columns, strict=True) if features else [()] * len(sizes),
            "pixel_values": nothing if images is None else torch.split(images, sizes),
            "detections": detections_of(together, sizes),
        }
        alike: dict[str, Any] = {"temperature": self.temperature, "reads_features": self.reads_features}
        told = targets.cuts(positions.tolist(), sizes)
        return [
            Batch(**alike, **own, **said, **dict(zip(of_each, values, strict=True)))
            for own, said, *values in zip(tokens, told, *of_each.values(), strict=True)
        ]

    def _said(
        self, pool: Pool, chosen: Array, edges: Int64[np.ndarray, " _"]
    ) -> tuple[Rows, Reading, StackedTargets | StackedAligned, list[Tensor]]:
        """Rows of batches that begin at `edges`, how they are read, and what is said of them; by several teachers as
        one."""
        has = has_entries(self.reader, self.stored)
        gathers = has and can_gather(pool.spec, self.temperature)
        rows = pool.take(chosen, self._columns if has and not gathers else self._columns - ENTRY_COLUMNS)
        self.check(rows)
        reading = Reading(rows, None) if self.reader is None else self.reader.read(rows)
        entries = gather_entries(pool.places(chosen), rows) if gathers else None
        targets, features = self._told(rows, reading, entries), self._features(rows)
        if "origin" in self.stored and isinstance(targets, StackedTargets):
            targets = targets.by(np.repeat(pool.students(chosen), np.diff(rows.position_offsets)))
        if self.join is not None and pool.beside:
            said: list[Any] = [(targets, features)]
            said += [self._said(other, chosen, edges)[2:] for other in pool.beside]
            targets, features = self.join.both(said, rows, self.temperature)
        return rows, reading, targets, features

    @property
    def _columns(self) -> frozenset[str]:
        features = [name for one in self.features for name in (one.column, one.scale_column)]
        gold = {"gold_codes"} if {"gold", LIKELIHOOD} & self.stored else set()
        gold |= {"word_start_codes"} & {f"{name}_codes" for name in self.stored}
        return BATCH_COLUMNS | set(features) | gold | (self.reader.columns if self.reader else set())

    def _layout(self, lengths: Array) -> Layout:
        if self.packing is None:
            return Layout.apart(lengths)
        return Layout.packed(lengths, self.packing.max_length)

    def _features(self, rows: Rows) -> list[Tensor]:
        own = {feature.column: feature for feature in rows.spec.features}  # joined ones are wider
        return [torch.from_numpy(rows.feature(own[one.column]).copy()) for one in self.features]

    def _tokens(self, rows: Rows, read: Read, layouts: Stacked) -> list[dict[str, Any]]:
        """What the student reads of each batch."""
        ids, packing = read.ids, self.packing
        nothing: list[Any] = [None] * len(layouts.layouts)
        types, packed = nothing, nothing
        if self.pass_token_types and rows.spec.has_token_type_ids:
            types = layouts.filled(replace(rows.ragged("token_type_ids"), offsets=ids.offsets), 0)
        if packing is not None:
            own = [ids.values[ids.offsets[first] : ids.offsets[last]] for first, last in layouts.rows]
            packed = [packing.packed(*one) for one in zip(layouts.layouts, own, strict=True)]
        found = {
            "input_ids": layouts.filled(ids, self.pad_id if packing is None else packing.filler),
            "attention_mask": layouts.mask(ids),
            "token_type_ids": types,
            "packed": packed,
            "decoder_input_ids": read.decoder_inputs(layouts, self.shift),
        }
        return [dict(zip(found, one, strict=True)) for one in zip(*found.values(), strict=True)]

    def check(self, rows: Rows) -> None:
        """Whether the student has embeddings for what is asked of it: on a GPU an index beyond is no error to read.

        Raises:
            StudentError: naming the first example that has such an id.
        """
        refuse_beyond(rows, "input_ids", self.embeddings)
        if self.pass_token_types and rows.spec.has_token_type_ids:
            refuse_beyond(rows, "token_type_ids", self.token_types)

    def _told(self, rows: Rows, reading: Reading, entries: Entries | None) -> StackedTargets | StackedAligned:
        if reading.alignment is None or self.reader is None:
            told = self._targets(rows, entries)
            if reading.moves is None:
                return told
            return moved_targets(told, rows, reading.rows, reading.moves)
        whole = replace(self, student_vocab=rows.spec.vocab_size)
        return aligned_targets(rows, reading, self.reader, lambda: whole._targets(rows, entries), self.stored)

    def _targets(self, rows: Rows, entries: Entries | None) -> StackedTargets:
        if rows.spec.score != "softmax":
            dense = dense_targets(rows)
            no_entries = np.zeros(rows.num_positions + 1, np.int64)
            return StackedTargets(dense, no_entries, None, offsets_of(dense.labelled.numpy()))
        entries = take_entries(rows, self.temperature) if entries is None else entries
        gold, student_vocab = gold_ids(rows), self.student_vocab
        targets, offsets, beyond = sparse_targets(
            rows, entries, gold, student_vocab=student_vocab, temperature=self.temperature
        )
        targets = with_stored(targets, rows, np.diff(offsets), self.temperature, self.stored)
        return StackedTargets(targets, offsets, beyond, offsets_of(gold != NO_LABEL))
