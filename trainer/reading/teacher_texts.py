"""What of a text each row holds, beside the teacher's tokens of it.

A causal LM of a byte-level tokenizer has said it by its ids: its tokens' bytes are the text, also of windows,
conversations and answers that the teacher wrote. Of any other the kept text is tokenised again, by the cache's own
tokenizer, and must give the ids that the cache has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from schemas.errors import StudentError
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.spec import Spec
from trainer.reading.offsets import Encoded, Encoder


class Stretch(NamedTuple):
    """A row's part of a text, and the teacher's tokens of it, special ones around left out."""

    text: str
    """What the student's tokenizer is given."""
    lead: int
    """The byte of the row's own count at which `text` begins: above 0 where a character was cut before."""
    begin: int
    end: int
    """The row's first byte of it, and the byte behind its last: a document's, or a row's own."""
    teacher: Encoded | None
    """None where its ids alone say where they end."""
    is_whole: bool = True
    """Whether `text` goes on to `end`: not where bytes that are no text were met."""


class Edges(NamedTuple):
    """How many of each row's tokens stand before its text, and behind it."""

    before: Array
    behind: Array


def edges(rows: Rows, encoder: Encoder) -> Edges:
    """Those that the tokenizer puts there; and behind a text's last window the end token, whoever wrote it."""
    ids = rows.input_ids
    lengths, last = ids.lengths, rows.array("window_index") == rows.array("window_count") - 1
    before, behind = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    prefix, suffix = np.array(encoder.prefix, np.int64), np.array(encoder.suffix, np.int64)
    if len(prefix):
        before = np.where(_stands(ids.values, ids.offsets[:-1], lengths, prefix), len(prefix), 0)
    if len(suffix):
        starts = ids.offsets[1:] - len(suffix)
        behind = np.where(_stands(ids.values, starts, lengths - before, suffix), len(suffix), 0)
    elif (end := encoder.tokenizer.eos_token_id) is not None:
        ends = last & (lengths > before) & (ids.values[ids.offsets[1:] - 1] == end)
        behind = ends.astype(np.int64)
    return Edges(before, behind)


def _stands(values: Array, starts: Array, room: Array, wanted: Array) -> Array:
    fits = room >= len(wanted)
    at = np.where(fits, starts, 0)[:, None] + np.arange(len(wanted))
    found: Array = fits & (values[np.minimum(at, len(values) - 1)] == wanted).all(-1)
    return found


def own_bytes(rows: Rows, row: int, around: Edges, encoder: Encoder) -> Stretch:
    """A row's text from its ids. A character that a window cuts is left out at either end."""
    assert encoder.bytes is not None
    ids = rows.input_ids.row(row)
    inner = ids[int(around.before[row]) : len(ids) - int(around.behind[row])].tolist()
    data = b"".join([encoder.bytes[index] for index in inner])
    if opens_with_space(rows, encoder)[row]:
        data = data[1:]
    lead = 0
    while lead < min(3, len(data)) and data[lead] & 0xC0 == 0x80:
        lead += 1
    try:
        text = data[lead:].decode()
    except UnicodeDecodeError as error:
        text = data[lead : lead + error.start].decode()
    return Stretch(text, lead, 0, len(data), None, lead + len(text.encode()) == len(data))


def opens_with_space(rows: Rows, encoder: Encoder) -> Array:
    """Of each row, whether its first byte is a space that the tokenizer has put before the text."""
    found: Array = np.full(len(rows), encoder.adds_space) & (rows.array("window_index") == 0)
    return found


class KeptTexts:
    """Rows' parts of texts that the cache keeps."""

    def __init__(self, spec: Spec, encoder: Encoder, where: str) -> None:
        self._spec, self._encoder, self._where = spec, encoder, where
        self._prompt = str(spec.setting("prompt")) if not spec.kind.has_positions else ""

    def stretches(self, rows: Rows, chosen: Sequence[int]) -> list[Stretch]:
        """Of the chosen rows.

        Raises:
            StudentError: a text does not give the ids that the cache has.
        """
        texts = [self._prompt + str(text) for text in rows.array("text")[chosen]]
        return [
            self._stretch(rows, row, text, found)
            for row, text, found in zip(chosen, texts, self._encoder.encode(texts), strict=True)
        ]

    def _stretch(self, rows: Rows, row: int, text: str, found: Encoded) -> Stretch:
        spec, prefix, suffix = self._spec, self._encoder.prefix, self._encoder.suffix
        body = spec.max_length - len(prefix) - len(suffix)
        start = int(rows.array("window_index")[row]) * (body - spec.stride)
        start, stop = (start, start + body) if len(found.ids) > body else (0, len(found.ids))
        part = Encoded(*(values[start:stop] for values in found))
        is_last = stop >= len(found.ids)
        behind = suffix if is_last or not spec.kind.predicts_tokens else ()
        expected = [*prefix, *part.ids.tolist(), *behind]
        if rows.input_ids.row(row).tolist() != expected:
            raise self._other(rows, row)
        begin = int(found.ends[start - 1]) if start else 0
        end = len(text.encode()) if is_last else int(part.ends[-1])
        return Stretch(text, 0, begin, end, part)

    def _other(self, rows: Rows, row: int) -> StudentError:
        return StudentError(
            "the kept text of a row does not give the tokens that the cache has",
            where=f"{self._where}, example {rows.example_ids[row].hex()}",
            expected="texts as --text_field has them: conversations, prompts and answers that the teacher wrote are "
            "read from a byte-level tokenizer's ids alone",
            do="Choose a student of the teacher's tokenizer; or write conversations out as texts and precompute them",
        )
