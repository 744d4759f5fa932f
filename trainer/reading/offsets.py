"""A text's tokens with the byte at which each ends.

A place between two tokens is *exact* where all that stands before it is in the tokens before it: there, and nowhere
else, may tokens of two tokenizers be compared. Inside a character that several tokens share no place is, unless each
of them is known to be one of its bytes. Only ends count: a space belongs to the token behind it, whoever has it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from schemas.rows.ragged import Array, offsets_of
from schemas.token_bytes import adds_space, byte_tokens, edge_ids, written_bytes


class Encoded(NamedTuple):
    """One text's tokens, special ones around it left out."""

    ids: Int32[np.ndarray, " S"]
    ends: Int64[np.ndarray, " S"]
    """The byte of the text behind each token's last, never falling."""
    exact: Bool[np.ndarray, " S"]
    """Whether the place behind it is exact."""


class Encoder:
    """A fast tokenizer, and what its vocabulary says of bytes."""

    def __init__(self, tokenizer: Any, spells: bool = False) -> None:
        """With `spells` a text that holds the name of a special token is read as its letters: whoever wrote the corpus
        ends no text with it."""
        self.tokenizer, self._spells = tokenizer, spells
        self.prefix, self.suffix = edge_ids(tokenizer)
        self.bytes = byte_tokens(tokenizer)
        self.adds_space = adds_space(tokenizer)
        self._is_byte = written_bytes(tokenizer)
        self.lengths: Array | None = None
        if self.bytes is not None:
            self.lengths = np.array([*map(len, self.bytes)], np.int64)

    def encode(self, texts: list[str]) -> list[Encoded]:
        """Each text's tokens."""
        if not texts:
            return []
        options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
        if self._spells:
            options["split_special_tokens"] = True
        found = self.tokenizer(texts, return_special_tokens_mask=True, **options)
        parts = zip(
            texts, found["input_ids"], found["special_tokens_mask"], found["offset_mapping"], strict=True
        )
        return [self._encoded(*part) for part in parts]

    def _encoded(
        self, text: str, ids: list[int], special: list[int], places: list[tuple[int, int]]
    ) -> Encoded:
        own = ~np.asarray(special, np.bool_)
        inner = np.asarray(ids, np.int32)[own]
        ends = self._byte_ends(text, inner)
        if ends is not None:
            return Encoded(inner, ends, np.ones(len(ends), np.bool_))
        is_byte = self._is_byte[inner]
        return Encoded(
            inner, *_by_characters(text, np.asarray(places, np.int64).reshape(-1, 2)[own], is_byte)
        )

    def _byte_ends(self, text: str, ids: Array) -> Array | None:
        """Where the tokens are the text's bytes: what a tokenizer normalises away is not."""
        if self.bytes is None or self.lengths is None:
            return None
        whole, data = b"".join([self.bytes[index] for index in ids.tolist()]), text.encode()
        shift = len(whole) - len(data)
        if whole[shift:] != data or shift not in ((0, 1) if self.adds_space else (0,)):
            return None
        found: Array = np.maximum(np.cumsum(self.lengths[ids]) - shift, 0)
        return found


def _by_characters(
    text: str, places: Int64[np.ndarray, "S 2"], is_byte: Bool[np.ndarray, " S"]
) -> tuple[Array, Array]:
    """From the characters that each token is from."""
    starts, stops = places[:, 0], np.maximum.accumulate(places[:, 1]) if len(places) else places[:, 1]
    bytes_before = _bytes_before(text)
    ends = bytes_before[stops]
    exact = np.ones(len(ends), np.bool_)
    exact[:-1] = starts[1:] >= stops[:-1]
    if is_byte.any():
        _split_bytes(np.where(is_byte[:, None], places, -1), bytes_before, ends, exact)
        ends = np.minimum.accumulate(ends[::-1])[::-1]  # of a bar before a character that is written in bytes
    return ends, exact


def _split_bytes(places: Array, bytes_before: Array, ends: Array, exact: Array) -> None:
    """As many tokens of one character as it has bytes, of those that are written as bytes (others' places are -1), are
    these, one each."""
    changes = np.flatnonzero((np.diff(places, axis=0) != 0).any(-1)) + 1
    for first, last in zip([0, *changes], [*changes, len(places)], strict=True):
        start, stop = places[first]
        if start < 0:
            continue
        size = int(bytes_before[stop] - bytes_before[start])
        if stop == start + 1 and size == last - first > 1:
            ends[first:last] = bytes_before[start] + np.arange(1, size + 1)
            exact[first : last - 1] = True


def _bytes_before(text: str) -> Int64[np.ndarray, " C1"]:
    """How many bytes stand before each character, and before the end."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return offsets_of(sizes)
