"""Where a batch's examples stand: each in a row of its own, or several in one row, which costs no padding.

In a packed row positions begin again with each example, and attention is block-diagonal: by transformers' own masks,
which see where positions begin again (`masking_utils.find_packed_sequence_indices`), or by a mask that is made here of
the tokens' examples. Which of them a student needs is found by trying it (`trainer/students/packed_trial.py`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.rows import kernels
from schemas.rows.blocks import array, arrays
from schemas.rows.ragged import Array, Ragged
from trainer.batches import kernels as compiled

PackedMask = Literal["own", "boolean", "additive"]
"""The model's own, of positions that begin again (attention with a window keeps it); or `[R, 1, S, S]`: true where a
token sees another (SDPA), or what is added to its score (eager)."""
_LITTLE = 1 / 32
"""Padding at which rows are not made longer: in attention a row's cost grows with the square of its length."""


@dataclass(frozen=True)
class Layout:
    """Where B examples stand in R rows of S tokens."""

    lengths: Int64[np.ndarray, " B"]
    row: Int64[np.ndarray, " B"]
    first: Int64[np.ndarray, " B"]
    """Which of the row's tokens each example begins at."""
    shape: tuple[int, int]
    """R and S."""

    @classmethod
    def apart(cls, lengths: Array) -> Layout:
        """Each example in a row of its own, padded to the longest."""
        number = len(lengths)
        return cls(lengths, np.arange(number), np.zeros(number, np.int64), (number, int(lengths.max())))

    @classmethod
    def packed(cls, lengths: Array, most: int) -> Layout:
        """Several examples in a row, the longest first, each in the first row that has room for it.

        Rows are as long as the longest example, or twice as long, four times, ... and at most `most` tokens: the
        shortest of these that waste little, else those that waste least.
        """
        tried = [
            cls.of_rows(lengths, _first_fit(lengths, width)) for width in _widths(int(lengths.max()), most)
        ]
        return next((one for one in tried if one.padding <= _LITTLE), min(tried, key=lambda one: one.padding))

    @classmethod
    def of_rows(cls, lengths: Array, rows: Sequence[Sequence[int]]) -> Layout:
        """The layout in which each row holds these examples, in this order."""
        row, first, longest = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64), 0
        for number, members in enumerate(rows):
            end = 0
            for member in members:
                row[member], first[member], end = number, end, end + int(lengths[member])
            longest = max(longest, end)
        return cls(lengths, row, first, (len(rows), longest))

    @property
    def padding(self) -> float:
        """Share of the rows' tokens that are no example's."""
        return 1 - int(self.lengths.sum()) / (self.shape[0] * self.shape[1])

    @functools.cached_property
    def within(self) -> Int64[np.ndarray, " T"]:
        """Which of its example's tokens each token is, the examples one after the other."""
        ends = np.cumsum(self.lengths)
        within: Array = np.arange(int(ends[-1])) - np.repeat(ends - self.lengths, self.lengths)
        return within

    @functools.cached_property
    def begins(self) -> Int64[np.ndarray, " B"]:
        """Which of the `R * S` tokens each example begins at."""
        begins: Array = self.row * self.shape[1] + self.first
        return begins

    @functools.cached_property
    def places(self) -> Int64[np.ndarray, " T"]:
        """Which of the `R * S` tokens each token is, the examples one after the other."""
        places: Array = np.repeat(self.begins, self.lengths) + self.within
        return places

    def filled(self, values: Array, padding: int) -> Int64[Tensor, "R S"]:
        """The examples' tokens, one after the other, where they stand."""
        whole = np.full(self.shape[0] * self.shape[1], padding, np.int64)
        whole[self.places] = values
        return torch.from_numpy(whole.reshape(self.shape))


class Stacked:
    """The layouts of several batches, whose tokens are written at once, one batch after the other."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self.layouts = layouts
        sizes = [layout.shape[0] * layout.shape[1] for layout in layouts]
        self._ends = list(itertools.accumulate(sizes, initial=0))
        shifted = [layout.begins + base for layout, base in zip(layouts, self._ends, strict=False)]
        self._begins = np.concatenate(shifted)

    @property
    def rows(self) -> Iterator[tuple[int, int]]:
        """The first and last example of each batch, among all."""
        return itertools.pairwise(itertools.accumulate((len(one.lengths) for one in self.layouts), initial=0))

    def filled(self, column: Ragged, padding: int) -> list[Int64[Tensor, "_ _"]]:
        """Each batch's `[R, S]` of a value a token."""
        whole = array(np.int64, self._ends[-1])
        whole.fill(padding)
        place = compiled.place_lists if kernels.IS_COMPILED else place_lists
        place(column.values, column.offsets, self._begins, whole)
        return self._parts(whole)

    def mask(self, column: Ragged) -> list[Int64[Tensor, "_ _"]]:
        """Each batch's `[R, S]`: 1 where it has a token."""
        whole = array(np.int64, self._ends[-1])
        whole.fill(0)
        mark = compiled.mark_lists if kernels.IS_COMPILED else mark_lists
        mark(column.offsets, self._begins, whole)
        return self._parts(whole)

    def _parts(self, whole: Array) -> list[Int64[Tensor, "_ _"]]:
        parts = zip(itertools.pairwise(self._ends), self.layouts, strict=True)
        flat = torch.from_numpy(whole)
        return [flat[begin:end].view(layout.shape) for (begin, end), layout in parts]

    def positions(
        self, offsets: Int64[np.ndarray, " B1"], index: Array
    ) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """The row of its batch and the token of its row that each position stands on; `index` is the token of its
        example, `offsets` are those of each example's positions."""
        number = int(offsets[-1])
        row, token = arrays([(np.int64, number), (np.int64, number)])
        rows, firsts = (
            np.concatenate(each)
            for each in ([one.row for one in self.layouts], [one.first for one in self.layouts])
        )
        place = compiled.place_positions if kernels.IS_COMPILED else place_positions
        place(offsets, index, rows, firsts, (row, token))
        return torch.from_numpy(row), torch.from_numpy(token)


def mark_lists(offsets: Array, begins: Array, into: Array) -> None:
    """As the compiled loop."""
    place_lists(np.ones(offsets[-1], np.int64), offsets, begins, into)


def place_positions(
    offsets: Array, index: Array, rows: Array, firsts: Array, into: tuple[Array, Array]
) -> None:
    """As the compiled loop."""
    lengths = np.diff(offsets)
    into[0][:] = np.repeat(rows, lengths)
    into[1][:] = index + np.repeat(firsts, lengths)


def place_lists(values: Array, offsets: Array, begins: Array, into: Array) -> None:
    """As the compiled loop."""
    into[np.arange(len(values)) + np.repeat(begins - offsets[:-1], np.diff(offsets))] = values


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How one student is told of several examples in a row."""

    max_length: int
    """Tokens of the longest row, if no example is longer."""
    mask: PackedMask = "own"
    is_causal: bool = True
    """Whether a token sees only those before it; for masks that are made here."""
    uncounted: int | None = None
    """The id whose tokens have no position of their own: all others are counted from it on, as RoBERTa does. None:
    positions count tokens, from 0."""
    filler: int = 0
    """What stands in a row behind its last example: any id but the model's own padding, of which transformers would
    warn where no mask of padding is given."""

    def packed(self, layout: Layout, input_ids: Array) -> Packed:
        """What keeps these examples apart; `input_ids` are all their tokens, one example after the other."""
        number, longest = len(layout.lengths), int(layout.lengths.max())
        mask = np.arange(longest) < layout.lengths[:, None]
        return Packed(
            position_ids=layout.filled(self._positions(layout, input_ids), self.uncounted or 0),
            example=layout.filled(np.repeat(np.arange(number), layout.lengths), number),
            places=torch.from_numpy(np.where(mask, layout.begins[:, None] + np.arange(longest), 0)),
            mask=torch.from_numpy(mask.astype(np.int64)),
            packing=self,
        )

    def _positions(self, layout: Layout, input_ids: Array) -> Array:
        if self.uncounted is None:
            return layout.within
        counts = input_ids != self.uncounted
        before = np.concatenate([[0], np.cumsum(counts)])[np.cumsum(layout.lengths) - layout.lengths]
        positions: Array = self.uncounted + counts * (np.cumsum(counts) - np.repeat(before, layout.lengths))
        return positions


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What keeps B examples in R rows of S tokens apart."""

    position_ids: Int64[Tensor, "R S"]
    """Begins again with each example. Padding never counts on, so each of its tokens stands alone."""
    example: Int64[Tensor, "R S"]
    """Which of the B examples each token belongs to; B for padding."""
    places: Int64[Tensor, "B L"]
    """Which of the `R * S` tokens each example's tokens are; 0 beyond its end."""
    mask: Int64[Tensor, "B L"]
    """1 for an example's own tokens."""
    packing: Packing

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the student's forward, in place of a mask of padding."""
        inputs = {"position_ids": self.position_ids}
        if self.packing.mask == "own":
            return inputs
        sees = self.example[:, None, :, None] == self.example[:, None, None, :]
        if self.packing.is_causal:
            sees = sees.tril()
        if self.packing.mask == "additive":
            lowest = torch.finfo(torch.float32).min
            return {
                **inputs,
                "attention_mask": torch.zeros_like(sees, dtype=torch.float32).masked_fill(~sees, lowest),
            }
        return {**inputs, "attention_mask": sees}

    def apart(self, states: Float[Tensor, "R S H"]) -> Float[Tensor, "B L H"]:
        """Each example's states in a row of their own; what stands beyond `mask` is another token's."""
        found = states.flatten(0, 1).index_select(0, self.places.flatten())
        return found.view(*self.places.shape, states.shape[-1])


def _widths(longest: int, most: int) -> Iterator[int]:
    width = longest
    while width < most:
        yield width
        width *= 2
    yield max(longest, most)


def _first_fit(lengths: Array, width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    known: list[int] = lengths.tolist()
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = known[example]
        number = next((number for number, left in enumerate(room) if left >= length), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(width)
        rows[number].append(example)
        room[number] -= length
    return rows
