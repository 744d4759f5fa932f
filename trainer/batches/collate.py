"""Rows of a cache become a batch of tensors: padded tokens, and flat positions with flat kept entries.

Everything that only depends on the teacher (temperature, tail, negentropy) is computed here, on the CPU, in the
loader's thread; the training step gathers and subtracts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.errors import StudentError
from schemas.features import Feature
from schemas.rows.ragged import Array, Ragged
from schemas.rows.rows import Rows
from trainer.batches.packing import Layout, Packed, Packing
from trainer.batches.targets import dense_targets, gold_ids, sparse_targets
from trainer.losses.divergences import NO_LABEL, DenseTargets, SparseTargets


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
    """Which of the S tokens each position stands on."""
    targets: SparseTargets | DenseTargets
    features: tuple[Float[Tensor, "B _"], ...]
    counts: Int64[Tensor, 3]
    """Positions, labelled positions and examples that count; all 0 in a weightless batch. On the CPU."""
    entry_offsets: Array
    """Where each position's kept entries begin, `[N + 1]`. On the CPU, for cutting without waiting for a GPU."""
    beyond: float | None
    """Teacher's mass on ids that the student does not have, summed over the positions; None if it has them all.
    A sampling policy's is an estimate, at the losses' temperature."""
    packed: Packed | None = None
    """What keeps several examples in one row apart; None where each has its own."""

    @property
    def num_rows(self) -> int:
        """Examples: a cache's rows."""
        return len(self.example_mask)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the student's forward."""
        inputs = {"input_ids": self.input_ids}
        inputs |= {"attention_mask": self.attention_mask} if self.packed is None else self.packed.model_inputs
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    @property
    def example_mask(self) -> Int64[Tensor, "B L"]:
        """1 for an example's own tokens, of what `by_example` gives."""
        return self.attention_mask if self.packed is None else self.packed.mask

    def by_example(self, states: Float[Tensor, "R S H"]) -> Float[Tensor, "B L H"]:
        """The states of each example's tokens, padded on the right to the longest example."""
        return states if self.packed is None else self.packed.apart(states)

    def at_positions(self, states: Float[Tensor, "R S H"]) -> Float[Tensor, "N H"]:
        """The states of the batch's positions."""
        return states.flatten(0, 1).index_select(0, self.row * states.shape[1] + self.token)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; from pinned memory the copies do not wait."""
        moved: Batch = _map(self, lambda tensor: tensor.to(device, non_blocking=True), but=("counts",))
        return moved

    def pin(self) -> Batch:
        """The same batch in page-locked memory."""
        pinned: Batch = _map(self, lambda tensor: tensor.pin_memory(), but=("counts",))
        return pinned

    def weightless(self) -> Batch:
        """The same batch, counting for nothing: what a rank computes when it has no batch in an epoch's last step."""
        return replace(self, counts=torch.zeros_like(self.counts), beyond=self.beyond and 0.0)


TOGETHER = 8
"""Batches whose targets are made at once."""
_COLUMNS = frozenset(
    [
        *("example_id", "input_ids", "token_type_ids", "position_index", "labels", "logits", "num_kept"),
        *("kept_ids", "kept_codes", "top_codes", "num_sampled", "sampled_ids", "sampled_counts"),
        *("sampled_codes", "entropy_codes", "logsumexp"),
    ]
)
"""What of a row a batch is made from, beside the features that are asked for, or an error tells."""


@runtime_checkable
class Source(Protocol):
    """Rows of which some can be taken."""

    def take(self, rows: Array, columns: Collection[str] | None = None) -> Rows:
        """The given rows, in the given order; of some columns alone where they are named."""


@dataclass(frozen=True, kw_only=True)
class Collation:
    """How rows become batches for one student and one set of losses."""

    student_vocab: int
    """V of the student's head. Teacher's entries beyond it go to the tail, or are left out where there is none."""
    pad_id: int
    temperature: float = 1.0
    features: tuple[Feature, ...] = ()
    """Features that the losses need; others are not decoded."""
    pass_token_types: bool = True
    embeddings: int | None = None
    """How many ids the student has embeddings for; None where it looks none up in a table."""
    token_types: int | None = None
    """How many token types it has embeddings for."""
    packing: Packing | None = None
    """How several examples stand in one row; None: each in its own."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, but got {self.temperature}")
        if self.student_vocab < 1 or self.pad_id < 0:
            raise ValueError(f"no vocabulary: size {self.student_vocab}, padding id {self.pad_id}")

    def batch(self, rows: Rows) -> Batch:
        """The batch of these rows, in their order.

        Raises:
            StudentError: an id that the student has no embedding for.
        """
        (found,) = self.batches(rows, [np.arange(len(rows))])
        return found

    def each(self, rows: Source, cuts: Sequence[Int64[np.ndarray, " _"]]) -> Iterator[Batch]:
        """The batch of each cut, one after the other, made `TOGETHER` at a time.

        Raises:
            StudentError: an id that the student has no embedding for.
        """
        for first in range(0, len(cuts), TOGETHER):
            yield from self.batches(rows, cuts[first : first + TOGETHER])

    def batches(self, rows: Source, cuts: Sequence[Int64[np.ndarray, " _"]]) -> list[Batch]:
        """One batch of the rows in each cut. What the teacher says is made for all at once, and each batch holds slices
        of it: the same values as apart, for a fraction of the calls.

        Raises:
            StudentError: an id that the student has no embedding for.
        """
        together = rows.take(np.concatenate(cuts), self._columns)
        self.check(together)
        offsets, targets = together.position_offsets, self._targets(together)
        token = torch.from_numpy(together.position_index().astype(np.int64))
        features = [torch.from_numpy(together.feature(feature).copy()) for feature in self.features]
        found, first = [], 0
        for last in np.cumsum([len(cut) for cut in cuts]).tolist():
            positions = slice(int(offsets[first]), int(offsets[last]))
            lengths = np.diff(offsets[first : last + 1])
            layout = self._layout(together.input_ids.lengths[first:last])
            found.append(
                Batch(
                    **self._tokens(together, layout, first, last),
                    row=torch.from_numpy(np.repeat(layout.row, lengths)),
                    token=token[positions] + torch.from_numpy(np.repeat(layout.first, lengths)),
                    features=tuple(feature[first:last] for feature in features),
                    **targets.cut(positions, last - first),
                )
            )
            first = last
        return found

    @property
    def _columns(self) -> frozenset[str]:
        features = [name for one in self.features for name in (one.column, one.scale_column)]
        return _COLUMNS | set(features)

    def _layout(self, lengths: Array) -> Layout:
        if self.packing is None:
            return Layout.apart(lengths)
        return Layout.packed(lengths, self.packing.max_length)

    def _tokens(self, rows: Rows, layout: Layout, first: int, last: int) -> dict[str, Any]:
        """What the student reads of some rows."""
        ids, types = _values(rows.input_ids, first, last), None
        if self.pass_token_types and rows.spec.has_token_type_ids:
            types = layout.filled(_values(rows.ragged("token_type_ids"), first, last), 0)
        return {
            "input_ids": layout.filled(ids, self.pad_id if self.packing is None else self.packing.filler),
            "attention_mask": layout.filled(np.ones(len(ids), np.int64), 0),
            "token_type_ids": types,
            "packed": None if self.packing is None else self.packing.packed(layout, ids),
        }

    def check(self, rows: Rows) -> None:
        """Whether the student has embeddings for what is asked of it: on a GPU an index beyond is no error to read.

        Raises:
            StudentError: naming the first example that has such an id.
        """
        _refuse_beyond(rows, "input_ids", self.embeddings)
        if self.pass_token_types and rows.spec.has_token_type_ids:
            _refuse_beyond(rows, "token_type_ids", self.token_types)

    def _targets(self, rows: Rows) -> _Targets:
        row = np.repeat(np.arange(len(rows)), np.diff(rows.position_offsets))
        if rows.spec.score != "softmax":
            return _Targets(dense_targets(rows, row), np.zeros(len(row) + 1, np.int64), None)
        gold = gold_ids(rows, row)
        return _Targets(
            *sparse_targets(rows, gold, student_vocab=self.student_vocab, temperature=self.temperature)
        )


class _Targets(NamedTuple):
    """What the teacher says of several batches' positions."""

    all: SparseTargets | DenseTargets
    entry_offsets: Array
    beyond: Array | None

    def cut(self, positions: slice, num_rows: int) -> dict[str, Any]:
        """The fields of the batch that holds these positions."""
        offsets = self.entry_offsets[positions.start : positions.stop + 1]
        if isinstance(self.all, SparseTargets):
            entries = slice(int(offsets[0]), int(offsets[-1]))
            targets: Any = self.all.chunk(positions.start, positions.stop, entries)
        else:
            targets = self.all.chunk(positions.start, positions.stop)
        return {
            "targets": targets,
            "counts": torch.tensor([positions.stop - positions.start, _num_labelled(targets), num_rows]),
            "entry_offsets": offsets - offsets[0],
            "beyond": None if self.beyond is None else float(self.beyond[positions].sum()),
        }


def _refuse_beyond(rows: Rows, name: str, number: int | None) -> None:
    column = rows.ragged(name)
    if number is None or not column.values.size or column.values.max() < number:
        return
    place = int((column.values >= number).argmax())
    row = int(np.searchsorted(column.offsets, place, side="right")) - 1
    raise StudentError(
        f"the student has no embedding for the cache's {name}",
        where=f"example {rows.array('example_id')[row].tobytes().hex()}",
        expected=f"at most {number - 1}",
        got=int(column.values[place]),
        do="Give the student's config a larger "
        + ("vocab_size" if name == "input_ids" else "type_vocab_size"),
    )


def _num_labelled(targets: SparseTargets | DenseTargets) -> int:
    labelled = targets.labelled if isinstance(targets, DenseTargets) else targets.gold != NO_LABEL
    return int(labelled.sum())


def _values(column: Ragged, first: int, last: int) -> Array:
    """The values of some rows of a list column, one row after the other."""
    values: Array = column.values[column.offsets[first] : column.offsets[last]]
    return values


def _map(value: Any, change: Any, but: tuple[str, ...] = ()) -> Any:
    """A frozen dataclass with `change` applied to each tensor in it, however deep, except in the fields named."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_map(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name not in but]
        return replace(value, **{name: _map(getattr(value, name), change) for name in names})
    return value
