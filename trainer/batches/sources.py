"""What a student reads of a row: all of it, each of the texts that it holds, or a source apart from its target."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from schemas.decoder_inputs import IGNORED, decoder_inputs
from schemas.rows.checks import text_offsets
from schemas.rows.ragged import Array, Ragged
from schemas.rows.rows import Rows
from schemas.tasks import SOURCE_TOKENS
from trainer.batches.packing import Layout, Stacked
from trainer.reading.alignment import Alignment

Shift = Callable[[Tensor], Tensor]
"""From target ids `[B, T]`, padded with `IGNORED`, to what a student's decoder is given."""


class Shifted:
    """The `Shift` of a student, which holds none of its weights: students that shift alike are equal in it."""

    def __init__(self, student: Any) -> None:
        config = student.config
        self._bare = object.__new__(type(student))
        self._bare.__dict__["config"] = config
        names = ("decoder_start_token_id", "pad_token_id", "eos_token_id", "bos_token_id")
        self._key = (type(student), *(str(getattr(config, name, None)) for name in names))

    def __call__(self, targets: Tensor) -> Tensor:
        found: Tensor = decoder_inputs(self._bare, targets)
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shifted) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Read(NamedTuple):
    """What a student reads of several batches' rows, each text alone: a row, or each of the texts that it holds, or its
    source."""

    ids: Ragged
    """All tokens, or the sources'."""
    edges: Int64[np.ndarray, " _"]
    """The first text of each batch, and the end."""
    positions: Int64[np.ndarray, " X1"]
    """Where each text's positions begin, among all."""
    places: Array
    """Which token of its text, or of its target, each position stands on."""
    targets: Ragged | None = None

    @classmethod
    def of(cls, rows: Rows, edges: Int64[np.ndarray, " _"], alignment: Alignment | None = None) -> Read:
        """From rows of any task, whose batches begin at `edges`; an `alignment` says what a student predicts of them
        whose tokens are others than the teacher's."""
        if alignment is not None:
            return cls(rows.input_ids, edges, alignment.offsets, alignment.places)
        offsets, places = rows.position_offsets, rows.position_index()
        if rows.spec.kind.has_source:
            source = rows.array(SOURCE_TOKENS).astype(np.int64)
            ids, targets = rows.input_ids.split(source)
            return cls(ids, edges, offsets, places - np.repeat(source - 1, np.diff(offsets)), targets)
        if not rows.spec.kind.holds_texts:
            return cls(rows.input_ids, edges, offsets, places)
        texts = replace(rows.input_ids, offsets=text_offsets(rows.ragged("position_index"), rows.input_ids))
        return cls(texts, offsets[edges], np.arange(len(places) + 1), np.zeros_like(places))

    @property
    def lengths(self) -> Iterator[Int64[np.ndarray, " _"]]:
        """Tokens of each batch's texts."""
        every = self.ids.lengths
        for first, last in itertools.pairwise(self.edges.tolist()):
            yield every[first:last]

    def decoder_inputs(self, layouts: Stacked, shift: Shift | None) -> list[Tensor | None]:
        """Of each batch whose ids have these layouts; None without targets."""
        if self.targets is None:
            return [None] * len(layouts.layouts)
        assert shift is not None
        lengths = self.targets.lengths
        own = Stacked([Layout.apart(lengths[first:last]) for first, last in layouts.rows])
        return [shift(ids) for ids in own.filled(self.targets, IGNORED)]
