"""The examples that a student does worst on, with what it and the teacher find likeliest at their worst places."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.reports.evaluations import Candidate, Example, Position
from schemas.rows.entries import entries_of
from schemas.rows.ragged import offsets_of
from schemas.rows.rows import Rows
from trainer.losses.targets import NO_LABEL
from trainer.tasks.student_task import Measured

if TYPE_CHECKING:
    from trainer.evaluation.closer import Seen

TOP = 5
"""Likeliest entries of a position."""
MOST_EXAMPLES, MOST_PLACES = 10, 3
_TEXT_TOKENS, _BEFORE_TOKENS = 256, 16


class Worst:
    """Is offered every row, and keeps those with the largest mean loss."""

    def __init__(self, measured: Measured) -> None:
        self._spec, self._tokenizer = measured.spec, measured.tokenizer
        self._heap: list[tuple[float, int, Example]] = []
        self._offered = 0

    def offer(self, rows: Rows, seen: Seen) -> None:
        """Rows and what was seen of all their positions."""
        offsets = rows.position_offsets
        for row in range(len(rows)):
            own = slice(int(offsets[row]), int(offsets[row + 1]))
            loss = float(seen.loss[own].mean()) if own.stop > own.start else -np.inf
            if loss == -np.inf or (len(self._heap) == MOST_EXAMPLES and loss <= self._heap[0][0]):
                continue
            example = self._example(rows.take(np.array([row])), type(seen)(*(part[own] for part in seen)))
            heapq.heappush(self._heap, (loss, -self._offered, example))
            self._offered += 1
            if len(self._heap) > MOST_EXAMPLES:
                heapq.heappop(self._heap)

    def found(self) -> tuple[Example, ...]:
        """The worst first."""
        return tuple(example for *_, example in sorted(self._heap, reverse=True))

    def _example(self, row: Rows, seen: Seen) -> Example:
        worst = np.argsort(-seen.loss, kind="stable")[:MOST_PLACES].tolist()
        return Example(
            example_id=row.example_ids[0].hex(),
            text=self._decoded(row.input_ids.values[:_TEXT_TOKENS]),
            tokens=row.num_tokens,
            loss_nats=float(seen.loss.mean()),
            places=tuple(self._position(row, seen, place) for place in worst),
        )

    def _position(self, row: Rows, seen: Seen, place: int) -> Position:
        index, entries = int(row.position_index()[place]), entries_of(row)
        first = int(offsets_of(entries.counts)[place])
        own = slice(first, first + min(TOP, int(entries.counts[place])))
        teacher = zip(entries.ids[own].tolist(), entries.weights[own].tolist(), strict=True)
        student = zip(seen.top_ids[place].tolist(), seen.top_probabilities[place].tolist(), strict=True)
        gold = int(seen.gold[place])
        return Position(
            index=index,
            before=self._decoded(row.input_ids.values[max(0, index + 1 - _BEFORE_TOKENS) : index + 1]),
            gold="" if gold == NO_LABEL else self._name(row, gold),
            loss_nats=float(seen.loss[place]),
            teacher=tuple(self._candidate(row, *one) for one in teacher),
            student=tuple(self._candidate(row, *one) for one in student),
        )

    def _candidate(self, row: Rows, index: int, probability: float) -> Candidate:
        return Candidate(id=index, text=self._name(row, index), probability=probability)

    def _name(self, row: Rows, index: int) -> str:
        """What an id means: a class, a token, or where classes are a row's tokens the token there."""
        if self._spec.label_names:
            return str(self._spec.label_names[index])
        if self._spec.kind.classes_are_tokens:
            return self._decoded(row.input_ids.values[index : index + 1])
        return self._decoded([index]) if self._spec.kind.has_vocabulary else str(index)

    def _decoded(self, ids: Any) -> str:
        if self._spec.kind.reads_images:
            return ""
        text: str = self._tokenizer.decode([int(one) for one in ids], clean_up_tokenization_spaces=False)
        return text
