"""Which of a text's tokens are of which of its parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from schemas.rows.ragged import Array


def joined(lists: Sequence[Sequence[int]], count: int, dtype: Any) -> Array:
    """The lists one after the other, `count` values in all."""
    return np.fromiter(itertools.chain.from_iterable(lists), dtype, count)


def around_second(texts: Sequence[int | None]) -> tuple[int, int]:
    """How many tokens stand before and after those of a pair's second text; all before where there are none."""
    own = [place for place, text in enumerate(texts) if text == 1]
    return (own[0], len(texts) - own[-1] - 1) if own else (len(texts), 0)


def overlapping(
    offsets: Int64[np.ndarray, "S 2"], spans: Sequence[tuple[int, int]]
) -> Bool[np.ndarray, " S"]:
    """Which tokens overlap one of the spans, by the characters that each token is from.

    A token of no characters stands for the blanks since the token before, where a tokenizer trims them from its
    offsets; where there are none, it belongs to the character that follows.
    """
    begins, ends = offsets.T
    reached = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    empty = begins == ends
    begins = np.where(empty & (reached < begins), reached, begins)
    ends = np.where(begins == ends, ends + 1, ends)
    inside = np.zeros(len(ends), np.bool_)
    for start, end in spans:
        if start < end:
            inside |= (ends > start) & (begins < end)
    return inside
