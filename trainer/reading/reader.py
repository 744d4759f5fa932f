"""`Reader`: a cache's rows as a student of another tokenizer reads them.

A text is tokenised once: what it gave is held by its example's id until `HELD_BYTES` are full, and what comes then is
tokenised again in each epoch, in the thread that makes batches. (Whatever is held first stays: rows come once an epoch,
so the one that was read longest ago is the next to be needed.)
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.errors import StudentError
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.spec import Spec
from schemas.token_bytes import word_starts
from trainer.reading.alignment import Alignment, Tokens, align
from trainer.reading.contexts import ContextReader
from trainer.reading.offsets import Encoded, Encoder
from trainer.reading.projection import projection
from trainer.reading.teacher_texts import Edges, KeptTexts, Stretch, edges, opens_with_space, own_bytes

HELD_BYTES = 2**28
"""About 20 million tokens."""
_TEXT_COLUMNS = ("text", "text_pair")


class Reading(NamedTuple):
    """Rows with a student's tokens in place of the teacher's."""

    rows: Rows
    alignment: Alignment | None
    """How these meet the teacher's, where positions are tokens of the text."""
    moves: Array | None = None
    """Where each of the teacher's tokens is among these, where they are what positions choose from: int64 [2, T]."""


class _Own(NamedTuple):
    """What a student reads of one row."""

    text: Encoded
    begin: int
    """The byte of the row's count behind which its first token begins."""
    end: int
    is_whole: bool
    teacher: Encoded | None
    teacher_begin: int = 0
    """The byte at which the teacher's first token of the row's text begins."""
    types: Array | None = None
    """Of a pair, whose `text` has its special tokens too."""

    @property
    def num_bytes(self) -> int:
        arrays = [*self.text, *(self.teacher or ()), *(() if self.types is None else (self.types,))]
        return sum(int(array.nbytes) for array in arrays) + 200


class Reader:
    """A student's tokenizer beside a cache's."""

    def __init__(self, student: Any, teacher: Any, spec: Spec, *, limit: int, where: str = "") -> None:
        """`limit`: tokens that the student reads at once."""
        self.spec, self.limit = spec, limit
        foreign = not set(student.all_special_tokens) <= set(teacher.all_special_tokens)
        self._student, self._teacher = Encoder(student, spells=foreign), Encoder(teacher)
        self._types = "token_type_ids" in student.model_input_names
        self._kept = KeptTexts(spec, self._teacher, where)
        self._held: dict[bytes, _Own] = {}
        self._free, self._lock = HELD_BYTES, threading.Lock()
        self._projection: Ragged | None = None
        self.contexts: ContextReader | None = None
        """How it reads a question and its context, where answers are places in these."""
        if spec.kind.classes_are_tokens:
            self.contexts = ContextReader(
                student, teacher, spec, limit=limit, held_bytes=HELD_BYTES, where=where
            )

    @property
    def columns(self) -> frozenset[str]:
        """What of a row it reads, beside what every batch needs."""
        return frozenset([*_TEXT_COLUMNS, "window_index", "window_count"])

    @property
    def aligns(self) -> bool:
        """Whether positions are tokens of the text, which must meet."""
        return self.spec.kind.predicts_tokens

    @property
    def projection(self) -> Ragged:
        """The student's ids that agree with each of the teacher's.

        Raises:
            StudentError: the vocabularies do not say it.
        """
        with self._lock:
            if self._projection is None:
                tokenizers = self._student.tokenizer, self._teacher.tokenizer
                self._projection = projection(*tokenizers, self.spec.vocab_size)
            return self._projection

    @functools.cached_property
    def words(self) -> Int64[np.ndarray, " W"]:
        """The student's ids that begin a word.

        Raises:
            StudentError: its vocabulary does not say it.
        """
        begins = word_starts(self._student.tokenizer)
        if begins is None:
            raise StudentError(
                "this tokenizer does not say which tokens begin a word, which the cache's teacher is asked for",
                got=type(self._student.tokenizer).__name__,
                do="Use --losses alm=1.0,word=1, which leaves that out",
            )
        return np.flatnonzero(begins)

    def read(self, rows: Rows) -> Reading:
        """The rows, read again.

        Raises:
            StudentError: a kept text is not what the teacher has read.
        """
        if self.contexts is not None:
            read, moves = self.contexts.read(rows)
            return Reading(read, None, moves)
        around = edges(rows, self._teacher)
        own = self._owns(rows, around)
        closing = self._closing(rows, around, own)
        found = [self._whole(one, suffix) for one, suffix in zip(own, closing, strict=True)]
        ids = _joined([ids for ids, _ in found], np.int32)
        read = self._rows(rows, ids, [types for _, types in found])
        if not self.aligns:
            return Reading(read, None)
        return Reading(read, self._aligned(rows, ids, own, around))

    def _rows(self, rows: Rows, ids: Ragged, types: Sequence[Array]) -> Rows:
        data = {**rows.data, "input_ids": ids}
        if self._types:
            data["token_type_ids"] = _joined(types, np.int8)
        return Rows(spec=replace(rows.spec, has_token_type_ids=self._types), data=data)

    def _owns(self, rows: Rows, around: Edges) -> list[_Own]:
        keys = self._keys(rows)
        missing = [row for row, key in enumerate(keys) if key not in self._held]
        made = dict(zip(missing, self._read(rows, missing, around), strict=True)) if missing else {}
        for row, own in made.items():
            with self._lock:
                if self._free >= own.num_bytes and keys[row] not in self._held:
                    self._free -= own.num_bytes
                    self._held[keys[row]] = own
        return [made[row] if row in made else self._held[key] for row, key in enumerate(keys)]

    def _keys(self, rows: Rows) -> list[bytes]:
        """What tells texts apart: an example's id, and where a teacher wrote on, what it wrote."""
        if self.spec.generation is None:
            return list(rows.example_ids)
        parts = np.split(rows.input_ids.values, rows.input_ids.offsets[1:-1])
        written = (hashlib.blake2b(part.tobytes(), digest_size=16).digest() for part in parts)
        return [key + own for key, own in zip(rows.example_ids, written, strict=True)]

    def _read(self, rows: Rows, chosen: Sequence[int], around: Edges) -> list[_Own]:
        with self._lock:  # a fast tokenizer is no two threads'
            if self.spec.has_text_pair and not self.aligns:
                return self._pairs(rows, chosen)
            if self.aligns and self._teacher.bytes is not None:
                stretches = [own_bytes(rows, row, around, self._teacher) for row in chosen]
            else:
                stretches = self._kept.stretches(rows, chosen)
            encoded = self._student.encode([stretch.text for stretch in stretches])
        return [_within(stretch, one) for stretch, one in zip(stretches, encoded, strict=True)]

    def _pairs(self, rows: Rows, chosen: Sequence[int]) -> list[_Own]:
        """Both texts, cut as a pair is to what the student reads at once."""
        texts = [[str(text) for text in rows.array(name)[chosen]] for name in _TEXT_COLUMNS]
        options = {"truncation": "longest_first", "max_length": self.limit, "verbose": False}
        encoded = self._student.tokenizer(*texts, return_token_type_ids=self._types, **options)
        ids = [np.asarray(each, np.int32) for each in encoded["input_ids"]]
        types = encoded["token_type_ids"] if self._types else ids
        nothing = np.zeros(0, np.int64)
        return [
            _Own(Encoded(one, nothing, nothing), 0, 0, True, None, types=np.asarray(kind, np.int8))
            for one, kind in zip(ids, types, strict=True)
        ]

    def _closing(self, rows: Rows, around: Edges, own: Sequence[_Own]) -> list[tuple[int, ...]]:
        """What ends each row: the student's own end tokens; where the teacher's text ends, else none of a text that
        goes on."""
        suffix = self._student.suffix
        if not self.aligns:
            return [suffix if one.types is None else () for one in own]
        last = rows.array("window_index") == rows.array("window_count") - 1
        end = self._student.tokenizer.eos_token_id
        by_teacher = suffix or (() if end is None else (end,))
        return [
            () if not (ends and one.is_whole) else by_teacher if behind else suffix
            for ends, behind, one in zip(last.tolist(), around.behind.tolist(), own, strict=True)
        ]

    def _whole(self, own: _Own, suffix: tuple[int, ...]) -> tuple[Array, Array]:
        """Ids and types of a row: its text's between special ones, cut to what the student reads at once."""
        if own.types is not None:
            return own.text.ids, own.types
        prefix, ids = self._student.prefix, own.text.ids
        if not self.aligns:
            ids = ids[: max(0, self.limit - len(prefix) - len(suffix))]
        found = np.concatenate([prefix, ids, suffix]).astype(np.int32)[: self.limit]
        if not len(found):  # a row of a batch has a token
            found = np.zeros(1, np.int32)
        return found, np.zeros(len(found), np.int8)

    def _aligned(self, rows: Rows, ids: Ragged, own: Sequence[_Own], around: Edges) -> Alignment:
        ends = np.array([one.end for one in own], np.int64)
        prefix = np.minimum(len(self._student.prefix), ids.lengths)
        begins = np.array([one.begin for one in own], np.int64)
        student = Tokens(
            ids.offsets, prefix, begins, *_ended(ids, prefix, begins, [one.text for one in own], ends)
        )
        return align(student, self._teachers(rows, own, around, ends), _predicted(rows), ends)

    def _teachers(self, rows: Rows, own: Sequence[_Own], around: Edges, ends: Array) -> Tokens:
        ids = rows.input_ids
        if self._teacher.lengths is None:
            begins = np.array([one.teacher_begin for one in own], np.int64)
            texts = [one.teacher or one.text for one in own]
            return Tokens(
                ids.offsets, around.before, begins, *_ended(ids, around.before, begins, texts, ends)
            )
        lengths = self._teacher.lengths[ids.values]
        row = np.repeat(np.arange(len(rows)), ids.lengths)
        place = np.arange(len(row)) - ids.offsets[row]
        is_behind = place >= (ids.lengths - around.behind)[row]
        lengths[(place < around.before[row]) | is_behind] = 0
        total = offsets_of(lengths)
        found = total[1:] - total[ids.offsets[:-1]][row] - opens_with_space(rows, self._teacher)[row]
        found = np.where(is_behind, ends[row] + 1, np.maximum(found, 0))
        return Tokens(
            ids.offsets, around.before, np.zeros(len(rows), np.int64), found, np.ones(len(row), np.bool_)
        )


def _within(stretch: Stretch, encoded: Encoded) -> _Own:
    """The tokens that stand wholly in a row's part of the text, counted in its bytes."""
    ends = encoded.ends + stretch.lead
    starts = np.concatenate([[stretch.lead], ends[:-1]])
    inside = np.flatnonzero((starts >= stretch.begin) & (ends <= stretch.end))
    first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    begin = max(stretch.begin, int(starts[first])) if len(inside) else stretch.begin
    text = Encoded(encoded.ids[first:last].copy(), ends[first:last].copy(), encoded.exact[first:last].copy())
    return _Own(text, begin, stretch.end, stretch.is_whole, stretch.teacher, stretch.begin)


def _ended(
    ids: Ragged, prefix: Array, begins: Array, texts: Sequence[Encoded], ends: Array
) -> tuple[Array, Array]:
    """Each token's end and whether it is exact: before a text where that begins, behind it a byte further."""
    found, exact = [], []
    rows = zip(ids.lengths.tolist(), prefix.tolist(), begins.tolist(), texts, ends.tolist(), strict=True)
    for length, before, begin, text, end in rows:
        inner = min(len(text.ids), length - before)
        behind = length - before - inner
        found += [np.full(before, begin), text.ends[:inner], np.full(behind, end + 1)]
        exact += [np.ones(before, np.bool_), text.exact[:inner], np.ones(behind, np.bool_)]
    return np.concatenate(found), np.concatenate(exact)


def _predicted(rows: Rows) -> Array:
    """Which of the teacher's tokens a position predicts."""
    found = np.zeros(rows.num_tokens, np.bool_)
    starts = np.repeat(rows.input_ids.offsets[:-1], np.diff(rows.position_offsets))
    found[starts + rows.position_index() + 1] = True
    return found


def _joined(lists: Sequence[Array], dtype: Any) -> Ragged:
    values = np.concatenate(lists).astype(dtype, copy=False)
    return Ragged(values=values, offsets=offsets_of(np.array([*map(len, lists)], np.int64)))
