"""Windows: a long document as stretches of at most `max_length` tokens, each between its special tokens.

`stride` is the number of tokens that a window shares with the one before, as in tokenizers: they are context, and no
token is ever a position twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from schemas.rows.ragged import Array
from schemas.spec import Spec


class Tokens(NamedTuple):
    """A tokenised document: ids, types, which were added as special, which may be positions, and of which word each
    is (-1: of none), where the task asks for words."""

    ids: Int32[np.ndarray, " S"]
    types: Int32[np.ndarray, " S"]
    special: Bool[np.ndarray, " S"]
    supervised: Bool[np.ndarray, " S"]
    words: Int32[np.ndarray, " S"] | None = None
    plain: tuple[int, int] | None = None
    """Of a text that is supervised all through: what `edges` gives, where it is known already. Where of a pair the
    second text is cut into windows, all that stands around it."""
    characters: Int64[np.ndarray, "S 2"] | None = None
    """First and last character, exclusive, of its own text, that each is from, where the task asks for them."""
    document_words: tuple[int, ...] | None = None
    """The same of each of the document's words, one after the other, where the corpus says them."""
    label: Any = None
    """The document's."""
    text: str = ""
    """The document's, where the task asks for characters; of a pair that whose windows there are."""
    source: int | None = None
    """Of a source with its target behind: how many tokens are the source's."""


class Window(NamedTuple):
    """One window: which tokens of the document it holds, and where in it positions may stand."""

    tokens: Int32[np.ndarray, " W"]
    positions: Int32[np.ndarray, " N"]
    columns: tuple[int, ...] = ()
    """Values of the task's own columns."""
    gold: Int32[np.ndarray, " N"] | None = None
    """What is right at each position, where the document says it."""


class Stretch(NamedTuple):
    """A stretch of a document, special tokens around it."""

    tokens: Int32[np.ndarray, " W"]
    first_new: int
    """Its first token, special ones not counted, that no stretch before holds."""
    is_last: bool


def stretches(tokens: Tokens, spec: Spec) -> Iterator[Stretch]:
    """All stretches of a document, one after the other.

    Raises:
        ValueError: `max_length` leaves no room beside special tokens and stride.
    """
    prefix, suffix = edges(tokens)
    body = spec.max_length - prefix - suffix
    length, step = len(tokens.ids) - prefix - suffix, body - spec.stride
    if body < 1 or step < 1:
        raise ValueError(f"max_length leaves {body} tokens, no more than the stride of {spec.stride}")
    if length <= body:  # most documents are short
        yield Stretch(first(len(tokens.ids)), prefix, is_last=True)
        return
    for start in range(0, max(1, length - spec.stride), step):
        last = start + body >= length
        index = _around(len(tokens.ids), prefix, suffix, start, min(start + body, length))
        yield Stretch(index, prefix + (spec.stride if start else 0), last)


def _around(total: int, prefix: int, suffix: int, start: int, end: int) -> Array:
    """Special tokens before, a stretch of the body, special tokens after."""
    body = np.arange(prefix + start, prefix + end)
    index: Array = np.concatenate([np.arange(prefix), body, np.arange(total - suffix, total)])
    return index.astype(np.int32)


_FIRST = np.arange(2**14, dtype=np.int32)
_FIRST.setflags(write=False)


def first(count: int) -> Int32[np.ndarray, " C"]:
    """The whole numbers below `count`, not to be written to: of short texts all are parts of one array."""
    return _FIRST[:count] if count <= len(_FIRST) else np.arange(count, dtype=np.int32)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A stretch of a text without the blanks at its edges; empty where it is all blanks."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())


def taken(values: Int32[np.ndarray, " S"], window: Window) -> Int32[np.ndarray, " W"]:
    """A document's values at the tokens of a window; not to be written to."""
    return values if len(window.tokens) == len(values) else values[window.tokens]


def edges_of_texts(special: Bool[np.ndarray, " S"], ends: Int64[np.ndarray, " T"]) -> list[tuple[int, int]]:
    """`edges` of each of many texts, which stand one after the other and end at `ends`."""
    starts = np.concatenate([[0], ends[:-1]])
    inner = np.concatenate([np.flatnonzero(~special), [len(special)]])
    head = np.minimum(inner[np.searchsorted(inner, starts)], ends)
    tail = np.where(head < ends, inner[np.searchsorted(inner[:-1], ends) - 1] + 1, ends)
    return list(zip((head - starts).tolist(), (ends - tail).tolist(), strict=True))


def edges(tokens: Tokens) -> tuple[int, int]:
    """How many tokens stand before and after the text in each of its windows: special ones, and a first text."""
    if tokens.plain is not None:
        return tokens.plain
    inner = ~tokens.special
    if not inner.any():
        return len(tokens.ids), 0
    return int(inner.argmax()), int(inner[::-1].argmax())
