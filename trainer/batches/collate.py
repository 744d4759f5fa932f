"""Rows of a cache become a batch of tensors: padded tokens, and flat positions with flat kept entries.

Everything that only depends on the teacher (temperature, tail, negentropy) is computed here, on the CPU, in the
loader's thread; the training step gathers and subtracts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.features import Feature
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.tasks import CLASS_COLUMNS, SOURCE_TOKENS
from trainer.batches.aligned import LIKELIHOOD, StackedAligned, aligned_targets, has_entries
from trainer.batches.embeddings import refuse_beyond
from trainer.batches.entries import ENTRY_COLUMNS, Entries, can_gather, gather_entries, take_entries
from trainer.batches.packing import Layout, Packed, Packing, Stacked
from trainer.batches.pool import Pool
from trainer.batches.sources import Read, Shift
from trainer.batches.stored import with_stored
from trainer.batches.targets import StackedTargets, dense_targets, example_keys, gold_ids, sparse_targets
from trainer.batches.tensors import mapped
from trainer.losses.aligned_targets import AlignedTargets
from trainer.losses.schedules import Warmth
from trainer.losses.targets import NO_LABEL, DenseTargets, SparseTargets
from trainer.reading.reader import Reader, Reading


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B examples in R rows of S tokens, padded on the right, and their N positions, example by example.

    R is B, and each example its own row, unless they are packed.
    """

    input_ids: Int64[Tensor, "R S"]
    attention_mask: Int64[Tensor, "R S"]
    """1 for the tokens of examples."""
    token_type_ids: Int64[Tensor, "R S"] | None
    row: Int64[Tensor, " N"]
    """Which of the R rows each position stands in."""
    token: Int64[Tensor, " N"]
    """Which of the S tokens each position stands on, or of the T of the decoder."""
    targets: SparseTargets | DenseTargets | AlignedTargets
    features: tuple[Float[Tensor, "B _"], ...]
    example_keys: Int64[Tensor, " B"]
    """Of each example 64 bits of its id."""
    counts: Int64[Tensor, 3]
    """Positions, labelled positions and examples that count; all 0 in a weightless batch. On the CPU."""
    entry_offsets: Array
    """Where each position's kept entries begin, `[N + 1]`. On the CPU, for cutting without waiting for a GPU."""
    beyond: float | None
    """Teacher's mass on ids that the student does not have, summed over the positions; None if it has them all.
    A sampling policy's is an estimate, at the losses' temperature."""
    temperature: float = 1.0
    """Of the targets: what the losses' is."""
    packed: Packed | None = None
    """What keeps several examples in one row apart; None where each has its own."""
    decoder_input_ids: Int64[Tensor, "R T"] | None = None
    """Where `input_ids` are sources: what the decoder is given, which predicts the targets."""

    @property
    def num_rows(self) -> int:
        """Examples: a cache's rows."""
        return len(self.example_keys)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding; of targets those that are predicted."""
        return int(self.attention_mask.sum()) + (0 if self.decoder_input_ids is None else len(self.token))

    @property
    def padded_tokens(self) -> int:
        """Tokens with padding."""
        decoder = self.decoder_input_ids
        return self.input_ids.numel() + (0 if decoder is None else decoder.numel())

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the student's forward."""
        inputs = {"input_ids": self.input_ids}
        inputs |= {"attention_mask": self.attention_mask} if self.packed is None else self.packed.model_inputs
        if self.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = self.decoder_input_ids
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    @property
    def example_mask(self) -> Int64[Tensor, "B L"]:
        """1 for an example's own tokens, of what `by_example` gives."""
        return self.attention_mask if self.packed is None else self.packed.mask

    def by_example(self, states: Float[Tensor, "R S H"]) -> Float[Tensor, "B L H"]:
        """The states of each example's tokens, padded on the right to the longest example."""
        return states if self.packed is None else self.packed.apart(states)

    def at_positions(self, states: Float[Tensor, "R *S H"]) -> Float[Tensor, "N H"]:
        """The states of the batch's positions, or of texts as a whole; S may count a text's positions, too."""
        if states.ndim == 2:  # one for each row, which has one position
            return states.index_select(0, self.row)
        return states.flatten(0, 1).index_select(0, self.row * states.shape[1] + self.token)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; from pinned memory the copies do not wait."""
        moved: Batch = mapped(self, lambda tensor: tensor.to(device, non_blocking=True), but=("counts",))
        return moved

    def pin(self) -> Batch:
        """The same batch in page-locked memory."""
        pinned: Batch = mapped(self, lambda tensor: tensor.pin_memory(), but=("counts",))
        return pinned

    def weightless(self) -> Batch:
        """The same batch, counting for nothing: what a rank computes when it has no batch in an epoch's last step."""
        return replace(self, counts=torch.zeros_like(self.counts), beyond=self.beyond and 0.0)


TOGETHER = 2**15
"""Tokens of the batches whose targets are made at once, or of one that is larger."""
_COLUMNS = frozenset(
    [
        *("example_id", "input_ids", "token_type_ids", "position_index", "labels", "logits", "num_kept"),
        *("kept_ids", "kept_codes", "top_codes", "num_sampled", "sampled_ids", "sampled_counts"),
        *("sampled_codes", "entropy_codes", "logsumexp", SOURCE_TOKENS, *CLASS_COLUMNS),
    ]
)
"""What of a row a batch is made from, beside the features that are asked for, or an error tells."""


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
    """Features that the losses need; others are not decoded."""
    stored: frozenset[str] = frozenset()
    """What of a position the losses need beside its entries: of `gold`, `entropy` and `own`."""
    pass_token_types: bool = True
    embeddings: int | None = None
    """How many ids the student has embeddings for; None where it looks none up in a table."""
    token_types: int | None = None
    """How many token types it has embeddings for."""
    packing: Packing | None = None
    """How several examples stand in one row; None: each in its own."""
    shift: Shift | None = None
    """What a student of two halves makes of targets for its decoder."""

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
        lengths = rows.lengths
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
        chosen, has = np.concatenate(cuts), has_entries(self.reader, self.stored)
        gathers = has and can_gather(rows.spec, self.temperature)
        together = rows.take(chosen, self._columns if has and not gathers else self._columns - ENTRY_COLUMNS)
        self.check(together)
        sizes = np.array([*map(len, cuts)], np.int64)
        edges = offsets_of(sizes)
        reading = Reading(together, None) if self.reader is None else self.reader.read(together)
        begins = np.repeat(together.position_offsets[edges[:-1]], sizes) * (reading.alignment is None)
        entries = gather_entries(rows.places(chosen), together, begins) if gathers else None
        targets = self._told(together, reading, entries, begins)
        features = [torch.from_numpy(together.feature(feature).copy()) for feature in self.features]
        keys = example_keys(together)
        parts = list(itertools.pairwise(edges.tolist()))
        read = Read.of(reading.rows, edges, reading.alignment)
        layouts = Stacked([self._layout(lengths) for lengths in read.lengths])
        tokens = self._tokens(reading.rows, read, layouts)
        positions = itertools.pairwise(read.positions[read.edges].tolist())
        row, token = layouts.positions(read.positions, read.places)
        return [
            Batch(
                **own,
                row=row[begin:end],
                token=token[begin:end],
                temperature=self.temperature,
                features=tuple(feature[first:last] for feature in features),
                example_keys=keys[first:last],
                **targets.cut(slice(begin, end), last - first),
            )
            for own, (first, last), (begin, end) in zip(tokens, parts, positions, strict=True)
        ]

    @property
    def _columns(self) -> frozenset[str]:
        features = [name for one in self.features for name in (one.column, one.scale_column)]
        gold = {"gold_codes"} if {"gold", LIKELIHOOD} & self.stored else set()
        return _COLUMNS | set(features) | gold | (self.reader.columns if self.reader else set())

    def _layout(self, lengths: Array) -> Layout:
        if self.packing is None:
            return Layout.apart(lengths)
        return Layout.packed(lengths, self.packing.max_length)

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
        ones = Ragged(values=np.ones(len(ids.values), np.int64), offsets=ids.offsets)
        found = {
            "input_ids": layouts.filled(ids, self.pad_id if packing is None else packing.filler),
            "attention_mask": layouts.filled(ones, 0),
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

    def _told(
        self, rows: Rows, reading: Reading, entries: Entries | None, begins: Array
    ) -> StackedTargets | StackedAligned:
        if reading.alignment is None or self.reader is None:
            return self._targets(rows, entries, begins)
        whole = replace(self, student_vocab=rows.spec.vocab_size)
        return aligned_targets(
            rows, reading, self.reader, lambda: whole._targets(rows, entries, begins), self.stored
        )

    def _targets(self, rows: Rows, entries: Entries | None, begins: Array) -> StackedTargets:
        if rows.spec.score != "softmax":
            dense = dense_targets(rows)
            no_entries = np.zeros(rows.num_positions + 1, np.int64)
            return StackedTargets(dense, no_entries, None, offsets_of(dense.labelled.numpy()))
        entries = take_entries(rows, self.temperature, begins) if entries is None else entries
        gold, student_vocab = gold_ids(rows), self.student_vocab
        targets, offsets, beyond = sparse_targets(
            rows, entries, gold, student_vocab=student_vocab, temperature=self.temperature
        )
        targets = with_stored(targets, rows, np.diff(offsets), self.temperature, self.stored)
        return StackedTargets(targets, offsets, beyond, offsets_of(gold != NO_LABEL))
