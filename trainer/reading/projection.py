"""Which of a student's tokens agree with a teacher's next token: a sparse 0/1 map W, told by strings alone.

The teacher says token i, the student token s, both at one place of a text. They agree where one goes on from the
other: each student's token s stands for the longest teacher's token that its bytes begin with; and a teacher's token
that none stands for, for the longest student's token that *its* bytes begin with. So `sum_s W_si q_s` is the student's
probability of an event, "what comes next goes on as i". After X-Token's rules (arXiv:2605.21699), whose weights below 1
are left out: where each i has one s they cancel, and the minimum stays the teacher's distribution, carried over.

With equal tokenizers W is the identity. Tokens that are no text agree by what they do (the end with the end).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from schemas.errors import StudentError
from schemas.rows.ragged import Ragged, offsets_of
from schemas.token_bytes import token_strings

String = tuple[bytes, str]
"""A token's bytes, and what kind it is of."""


def projection(student: Any, teacher: Any, vocab_size: int) -> Ragged:
    """The student's ids, ascending, for each of the teacher's V.

    Raises:
        StudentError: a tokenizer's vocabulary does not say what its tokens add to a text.
    """
    found = []
    for whose, tokenizer in (("student", student), ("teacher", teacher)):
        strings = token_strings(tokenizer)
        if strings is None:
            raise StudentError(
                f"projected_kl compares tokens by their strings, and the {whose}'s do not say what they add to a text",
                expected="a byte-level or SentencePiece tokenizer",
                got=type(tokenizer).__name__,
                do="Use --losses alm=1.0, which compares stretches of text",
            )
        found.append(strings)
    return by_strings(found[0], found[1], vocab_size)


def by_strings(student: Sequence[String], teacher: Sequence[String], vocab_size: int) -> Ragged:
    """The same from both vocabularies' strings by id; V may be more than the teacher has tokens."""
    theirs, ours = _Longest(teacher), _Longest(student)
    pairs = [(i, s) for s, string in enumerate(student) if (i := theirs.of(string)) is not None]
    reached = {i for i, _ in pairs}
    pairs += [
        (i, s) for i, string in enumerate(teacher) if i not in reached and (s := ours.of(string)) is not None
    ]
    return _by_teacher((pair for pair in sorted(pairs) if pair[0] < vocab_size), vocab_size)


def _by_teacher(pairs: Iterable[tuple[int, int]], vocab_size: int) -> Ragged:
    both: Int64[np.ndarray, "P 2"] = np.array([*pairs], np.int64).reshape(-1, 2)
    counts = np.bincount(both[:, 0], minlength=vocab_size)
    return Ragged(values=both[:, 1].copy(), offsets=offsets_of(counts))


class _Longest:
    """The longest token that a string begins with; of one kind before any other."""

    def __init__(self, strings: Sequence[String]) -> None:
        self._exact: dict[String, int] = {}
        self._text: dict[bytes, int] = {}
        for index, (value, kind) in reversed([*enumerate(strings)]):
            if value:
                self._exact[value if not kind.startswith("special") else b"", kind] = index
            if value and kind == "":
                self._text[value] = index
        for index, (value, kind) in reversed([*enumerate(strings)]):
            if kind == "byte":
                self._text.setdefault(value, index)
        self._most = max(map(len, self._text), default=0)

    def of(self, string: String) -> int | None:
        value, kind = string
        if not value:
            return None
        if kind.startswith("special"):
            return self._exact.get((b"", kind))
        if (found := self._exact.get(string)) is not None:
            return found
        for size in range(min(len(value), self._most), 0, -1):
            if (found := self._text.get(value[:size])) is not None:
                return found
        return None
