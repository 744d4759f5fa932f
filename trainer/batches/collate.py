"""Rows of a cache become a batch of tensors: padded tokens, and flat positions with flat kept entries.

Everything that only depends on the teacher (temperature, tail, negentropy) is computed here, on the CPU, in the
loader's thread; the training step gathers and subtracts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.errors import StudentError
from schemas.features import Feature
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from trainer.batches.targets import dense_targets, gold_ids, sparse_targets
from trainer.losses.divergences import NO_LABEL, DenseTargets, SparseTargets


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B examples, padded to S tokens on the right, and their N positions, row by row."""

    input_ids: Int64[Tensor, "B S"]
    attention_mask: Int64[Tensor, "B S"]
    token_type_ids: Int64[Tensor, "B S"] | None
    row: Int64[Tensor, " N"]
    """Which of the B rows each position stands in."""
    token: Int64[Tensor, " N"]
    """Which of the S tokens each position stands on."""
    targets: SparseTargets | DenseTargets
    features: tuple[Float[Tensor, "B _"], ...]
    counts: Int64[Tensor, 3]
    """Positions, labelled positions and rows that count; all 0 in a weightless batch. On the CPU."""
    entry_offsets: Array
    """Where each position's kept entries begin, `[N + 1]`. On the CPU, for cutting without waiting for a GPU."""
    beyond: float | None
    """Teacher's mass on ids that the student does not have, summed over the positions; None if it has them all.
    A sampling policy's is an estimate, at the losses' temperature."""

    @property
    def num_rows(self) -> int:
        return len(self.input_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the student's forward."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    def at_positions(self, states: Float[Tensor, "B S H"]) -> Float[Tensor, "N H"]:
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
        self.check(rows)
        offsets = rows.position_offsets
        row = np.repeat(np.arange(len(rows)), np.diff(offsets))
        token = rows.position_index().astype(np.int64)
        targets, entry_offsets, beyond = self._targets(rows, row)
        types = None
        if self.pass_token_types and rows.spec.has_token_type_ids:
            types = _padded(rows, "token_type_ids", 0)
        ids = _padded(rows, "input_ids", self.pad_id)
        return Batch(
            input_ids=ids,
            attention_mask=_mask(rows, ids.shape[1]),
            token_type_ids=types,
            row=torch.from_numpy(row),
            token=torch.from_numpy(token),
            targets=targets,
            features=tuple(torch.from_numpy(rows.feature(feature).copy()) for feature in self.features),
            counts=torch.tensor([len(row), _num_labelled(targets), len(rows)]),
            entry_offsets=entry_offsets,
            beyond=beyond,
        )

    def check(self, rows: Rows) -> None:
        """Whether the student has embeddings for what is asked of it: on a GPU an index beyond is no error to read.

        Raises:
            StudentError: naming the first example that has such an id.
        """
        _refuse_beyond(rows, "input_ids", self.embeddings)
        if self.pass_token_types and rows.spec.has_token_type_ids:
            _refuse_beyond(rows, "token_type_ids", self.token_types)

    def _targets(self, rows: Rows, row: Array) -> tuple[SparseTargets | DenseTargets, Array, float | None]:
        if rows.spec.score != "softmax":
            return dense_targets(rows, row), np.zeros(len(row) + 1, np.int64), None
        gold = gold_ids(rows, row)
        return sparse_targets(rows, gold, student_vocab=self.student_vocab, temperature=self.temperature)


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


def _padded(rows: Rows, name: str, padding: int) -> Int64[Tensor, "B S"]:
    column = rows.ragged(name)
    padded = np.full((len(rows), int(column.lengths.max())), padding, np.int64)
    padded[np.arange(padded.shape[1]) < column.lengths[:, None]] = column.values
    return torch.from_numpy(padded)


def _mask(rows: Rows, length: int) -> Int64[Tensor, "B S"]:
    return torch.from_numpy((np.arange(length) < rows.input_ids.lengths[:, None]).astype(np.int64))


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
