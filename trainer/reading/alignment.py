"""Where a teacher's tokens and a student's end together: chunks, each of whole tokens of both.

All of a batch at once, in numpy: places are byte ends within a row, and a row's number stands above them. A chunk goes
from one place that both have to the next. It counts where the cache has a position for each of the teacher's tokens in
it, and the student something before each of its own. With equal tokenizers every token is a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from schemas.rows.ragged import Array, offsets_of

_ROW = 2**40
"""More than the bytes of a row's text."""


class Tokens(NamedTuple):
    """One side's tokens of R rows, one row after the other."""

    offsets: Int64[np.ndarray, " R1"]
    prefix: Int64[np.ndarray, " R"]
    """Tokens of each row before its text."""
    begins: Int64[np.ndarray, " R"]
    """The byte at which the first token of the text begins."""
    ends: Int64[np.ndarray, " T"]
    """The byte at which each token ends; before the text it is `begins`."""
    exact: Bool[np.ndarray, " T"]


class Alignment(NamedTuple):
    """What a student predicts of R rows, and the chunks of it."""

    offsets: Int64[np.ndarray, " R1"]
    """Of each row's predicted tokens, among all M."""
    places: Int64[np.ndarray, " M"]
    """Which of its row's tokens stands before each of them: where it is predicted."""
    tokens: Int64[np.ndarray, " M"]
    """Which of all T tokens each is."""
    begins: Int64[np.ndarray, " C"]
    """The first of the M in each chunk."""
    ends: Int64[np.ndarray, " C"]
    teacher_begins: Int64[np.ndarray, " C"]
    """The first of the teacher's N positions that predicts a token of each chunk."""
    teacher_ends: Int64[np.ndarray, " C"]
    num_bytes: Int64[np.ndarray, " C"]
    goes_on: Bool[np.ndarray, " C"]
    """Whether both predict a token behind the chunk: the student at `ends`, the teacher at `teacher_ends`."""


def align(
    student: Tokens, teacher: Tokens, predicted: Bool[np.ndarray, " T"], text_ends: Int64[np.ndarray, " R"]
) -> Alignment:
    """`predicted` says which of the teacher's tokens the cache has a position for; `text_ends` where each row's text
    ends, behind which only end tokens stand, a byte further."""
    ours = _predicted(student, teacher, predicted)
    before_ours, before_theirs = offsets_of(ours), offsets_of(predicted)
    places = [_places(side) for side in (student, teacher)]
    (a, _), (b, _) = places
    keys, *at = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    s, t = (own[index] for (_, own), index in zip(places, at, strict=True))
    begins, ends = np.arange(len(keys))[:-1], np.arange(len(keys))[1:]
    whole = keys[begins] // _ROW == keys[ends] // _ROW
    for before, own in ((before_ours, s), (before_theirs, t)):
        whole &= before[own[ends]] - before[own[begins]] == own[ends] - own[begins]
    begins, ends = begins[whole], ends[whole]
    row = keys[begins] // _ROW
    stop = np.minimum(keys[ends] % _ROW, text_ends[row])
    tokens = np.flatnonzero(ours)
    goes_on = np.ones(len(begins), np.bool_)
    for side, its, own in ((student, ours, s), (teacher, predicted, t)):
        goes_on &= (own[ends] < side.offsets[row + 1]) & np.append(its, False)[own[ends]]
    return Alignment(
        offsets=before_ours[student.offsets],
        places=tokens - 1 - np.repeat(student.offsets[:-1], np.diff(before_ours[student.offsets])),
        tokens=tokens,
        begins=before_ours[s[begins]],
        ends=before_ours[s[ends]],
        teacher_begins=before_theirs[t[begins]],
        teacher_ends=before_theirs[t[ends]],
        num_bytes=stop - keys[begins] % _ROW,
        goes_on=goes_on,
    )


def _predicted(student: Tokens, teacher: Tokens, predicted: Array) -> Array:
    """A student's token is one to predict where the teacher's token is that holds its last byte, and something stands
    before it. Behind the teacher's last token it is as that."""
    rows = np.repeat(np.arange(len(student.prefix)), np.diff(student.offsets))
    theirs = np.repeat(np.arange(len(teacher.prefix)), np.diff(teacher.offsets))
    holder = np.searchsorted(theirs * _ROW + teacher.ends, rows * _ROW + student.ends, side="left")
    holder = np.minimum(holder, teacher.offsets[rows + 1] - 1)
    place = np.arange(len(rows)) - student.offsets[rows]
    found: Array = predicted[holder] & (place >= np.maximum(student.prefix[rows], 1))
    return found


def _places(side: Tokens) -> tuple[Array, Array]:
    """The exact places of each row, ascending, and which of all tokens stands behind each (or the next row's first).

    Where tokens end together the place is behind the last of them.
    """
    rows, total = len(side.prefix), len(side.ends)
    row = np.repeat(np.arange(rows), np.diff(side.offsets) + 1)
    slot = np.arange(total) + np.repeat(np.arange(rows), np.diff(side.offsets)) + 1
    keys, exact = np.zeros(total + rows, np.int64), np.zeros(total + rows, np.bool_)
    keys[slot], exact[slot] = side.ends, side.exact
    first = side.offsets[:-1] + np.arange(rows) + side.prefix
    keys[first], exact[first] = side.begins, True
    before_text = np.arange(total + rows) < np.repeat(first, np.diff(side.offsets) + 1)
    exact &= ~before_text
    keys += row * _ROW
    at = np.flatnonzero(exact)
    last = np.ones(len(at), np.bool_)
    last[:-1] = keys[at[1:]] != keys[at[:-1]]
    at = at[last]
    return keys[at], at - row[at]
