"""Where a window's tokens stand in the context that a cache keeps, of the teacher's tokens and of a student's.

A student of another tokenizer is given the question and the window's own stretch of the context. An answer that begins
with a token of the teacher's begins with the student's token that holds this one's first letter, and ends with the one
that holds its last: so a distribution over places goes from one to the other, and nothing is lost but what several
tokens of the teacher's tell apart and one of the student's does not. The first token stands for no answer on both
sides.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from schemas.errors import StudentError
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.spec import Spec

NOWHERE = -1
"""The place of what was cut off."""


class Context(NamedTuple):
    """A row's window, as one side reads it."""

    ids: Int32[np.ndarray, " S"]
    types: Int32[np.ndarray, " S"]
    start: int
    """Its first token of the context,"""
    end: int
    """and the one behind the last."""
    places: Int64[np.ndarray, "S 2"]
    """First and last character, exclusive, that each token of the context is from, without blanks at its edges; of one
    of blanks alone nothing, at its begin; `NOWHERE` of others."""

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The characters from one token to another."""
        return int(self.places[first, 0]), int(self.places[last, 1])


class Contexts:
    """The teacher's tokenizer, and what it made of the texts that a cache keeps."""

    def __init__(self, tokenizer: Any, spec: Spec, where: str) -> None:
        self._tokenizer, self._spec, self._where = tokenizer, spec, where

    def windows(self, rows: Rows, chosen: Sequence[int]) -> list[Context]:
        """Of the chosen rows, the teacher's windows.

        Raises:
            StudentError: a text does not give the ids that the cache has.
        """
        whole: dict[tuple[str, str], Context] = {}
        found = []
        for row in chosen:
            texts = str(rows.array("text")[row]), str(rows.array("text_pair")[row])
            if texts not in whole:
                whole[texts] = paired(self._tokenizer, *texts)
            found.append(self._window(rows, row, whole[texts]))
        return found

    def _window(self, rows: Rows, row: int, whole: Context) -> Context:
        before, after = whole.start, len(whole.ids) - whole.end
        body, length = self._spec.max_length - before - after, whole.end - whole.start
        begin = int(rows.array("window_index")[row]) * (body - self._spec.stride)
        taken = np.arange(len(whole.ids))
        if length > body:
            inner = np.arange(before + begin, before + min(begin + body, length))
            taken = np.concatenate([taken[:before], inner, taken[whole.end :]])
        if whole.ids[taken].tolist() != rows.input_ids.row(row).tolist():
            raise StudentError(
                "the kept text of a row does not give the tokens that the cache has",
                where=f"{self._where}, example {rows.example_ids[row].hex()}",
                expected="the question and its context, as the teacher's tokenizer reads them",
                do="Precompute the cache anew with --keep_text",
            )
        return Context(whole.ids[taken], whole.types[taken], before, len(taken) - after, whole.places[taken])


def paired(tokenizer: Any, question: str, context: str, limit: int | None = None) -> Context:
    """Both as a pair, cut to a `limit` of tokens, the longer first.

    Raises:
        StudentError: the tokenizer puts the context first, or leaves none of it.
    """
    cut = {} if limit is None else {"truncation": "longest_first", "max_length": limit}
    encoded = tokenizer(question, context, return_offsets_mapping=True, verbose=False, **cut)
    texts = np.array([-1 if text is None else text for text in encoded.sequence_ids()])
    own = np.flatnonzero(texts == 1)
    if not len(own) or own[0] == 0 or len(own) != own[-1] - own[0] + 1 or (texts[own[-1] :] == 0).any():
        raise StudentError(
            "the student's tokenizer does not read a question and its context one behind the other",
            expected="tokens of the context behind the question's",
            got=type(tokenizer).__name__,
            do="Choose a student of another tokenizer, or of more tokens at once",
        )
    places = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    places[texts != 1] = NOWHERE
    for at in own.tolist():
        places[at] = _letters(context, *places[at].tolist())
    ids = np.array(encoded["input_ids"], np.int32)
    types = np.array(encoded.get("token_type_ids", np.zeros(len(ids))), np.int32)
    return Context(ids, types, int(own[0]), int(own[-1]) + 1, places)


def _letters(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    if not part.strip():
        return start, start
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())


class Both(NamedTuple):
    """A row's window on both sides."""

    theirs: Context
    ours: Context
    moves: Int64[np.ndarray, "2 S"]
    """Where each of the teacher's tokens is among the student's, as an answer's start and as its end."""

    @property
    def num_bytes(self) -> int:
        arrays = (*self.theirs, *self.ours, self.moves)
        return sum(int(array.nbytes) for array in arrays if isinstance(array, np.ndarray)) + 300


class ContextReader:
    """A student's tokenizer beside a cache's, of questions and their contexts."""

    def __init__(
        self, student: Any, teacher: Any, spec: Spec, *, limit: int, held_bytes: int, where: str
    ) -> None:
        """`limit`: tokens that the student reads at once; of what was read `held_bytes` are held."""
        self._student, self._limit = student, limit
        self._contexts = Contexts(teacher, spec, where)
        self._held: dict[bytes, Both] = {}
        self._free, self._lock = held_bytes, threading.Lock()

    def both(self, rows: Rows) -> list[Both]:
        """Each row's window, as the teacher read it and as the student does.

        Raises:
            StudentError: a text does not give the ids that the cache has, or the student cannot read it.
        """
        keys = rows.example_ids
        with self._lock:  # a fast tokenizer is no two threads'
            missing = [row for row, key in enumerate(keys) if key not in self._held]
            made = dict(zip(missing, self._read(rows, missing), strict=True))
            for row, own in made.items():
                if self._free >= own.num_bytes and keys[row] not in self._held:
                    self._free -= own.num_bytes
                    self._held[keys[row]] = own
            return [made[row] if row in made else self._held[key] for row, key in enumerate(keys)]

    def _read(self, rows: Rows, chosen: Sequence[int]) -> list[Both]:
        found = []
        for row, theirs in zip(chosen, self._contexts.windows(rows, chosen), strict=True):
            texts = str(rows.array("text")[row]), str(rows.array("text_pair")[row])
            ours = _read_again(self._student, *texts, theirs, self._limit)
            found.append(Both(theirs, ours, _moves(theirs, ours)))
        return found

    def read(self, rows: Rows) -> tuple[Rows, Int64[np.ndarray, "2 T"]]:
        """The rows with the student's tokens, and where the teacher's are among them.

        Raises:
            StudentError: as `both`.
        """
        both = self.both(rows)
        start, end = rows.spec.kind.class_columns or ("", "")
        longest = max((len(one.ours.ids) for one in both), default=2)
        types = "token_type_ids" in self._student.model_input_names
        data = {
            **rows.data,
            "input_ids": _joined([one.ours.ids for one in both], np.int32),
            start: np.array([one.ours.start for one in both], np.int32),
            end: np.array([one.ours.end for one in both], np.int32),
        }
        if types:
            data["token_type_ids"] = _joined([one.ours.types for one in both], np.int8)
        shape = {"max_length": longest, "vocab_size": longest, "stride": 0}
        spec = replace(rows.spec, has_token_type_ids=types, **shape)  # type: ignore[arg-type]
        every = [one.moves for one in both] or [np.zeros((2, 0), np.int64)]
        return Rows(spec=spec, data=data), np.concatenate(every, axis=1)


def _joined(lists: Sequence[Array], dtype: Any) -> Ragged:
    values = np.concatenate([*lists, np.zeros(0, dtype)]).astype(dtype, copy=False)
    return Ragged(values=values, offsets=offsets_of(np.array([*map(len, lists)], np.int64)))


def _read_again(tokenizer: Any, question: str, context: str, theirs: Context, limit: int) -> Context:
    """The same window by a student's tokenizer, its places counted in the whole context.

    Raises:
        StudentError: as `paired`.
    """
    own = theirs.places[theirs.start : theirs.end]
    letters = own[own[:, 1] > own[:, 0]]
    begin, end = int(letters[:, 0].min(initial=len(context))), int(letters[:, 1].max(initial=0))
    if begin >= end:  # a window of blanks
        begin, end = int(own[0, 0]), int(own[0, 0]) + 1
    found = paired(tokenizer, question, context[begin:end], limit)
    places = np.where(found.places == NOWHERE, NOWHERE, found.places + begin)
    return found._replace(places=places)


def _moves(theirs: Context, ours: Context) -> Int64[np.ndarray, "2 S"]:
    """Where the teacher's tokens are among the student's: as an answer's start, and as its end; `NOWHERE` of tokens
    that the student does not read."""
    found = np.full((2, len(theirs.ids)), NOWHERE, np.int64)
    found[:, 0] = 0
    own = np.flatnonzero(
        ours.places[:, 1] > ours.places[:, 0]
    )  # of letters: no answer begins or ends with a blank
    if not len(own):
        return found
    begun, reached = ours.places[own, 0], np.maximum.accumulate(ours.places[own, 1])
    inside = slice(theirs.start, theirs.end)
    first, last = theirs.places[inside, 0], theirs.places[inside, 1] - 1
    starts = np.searchsorted(reached, first, side="right")  # the first that goes beyond this letter
    ends = np.searchsorted(begun, last, side="right") - 1  # the last that begins at it, or before
    found[0, inside] = np.where(starts < len(own), own[np.minimum(starts, len(own) - 1)], NOWHERE)
    is_read = (ends >= 0) & (last < reached[-1])
    found[1, inside] = np.where(is_read, own[np.maximum(ends, 0)], NOWHERE)
    return found
