"""Chunks, against a plain loop over places; and what the user of an alignment counts on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.trainer.reading.tokenizers import SENTENCES, byte_level, sentence_piece, word_piece
from trainer.reading.alignment import Alignment, Tokens, align
from trainer.reading.offsets import Encoder

LETTERS = list("abcat the é🤗漢\n ,")


class Side(NamedTuple):
    """One text's tokens, special ones around it."""

    ids: list[int]
    ends: list[int]
    exact: list[bool]
    prefix: int


def side(tokenizer: Any, text: str) -> Side:
    encoder = Encoder(tokenizer)
    (found,) = encoder.encode([text])
    before, behind, size = len(encoder.prefix), len(encoder.suffix), len(text.encode())
    return Side(
        [*encoder.prefix, *found.ids.tolist(), *encoder.suffix],
        [0] * before + found.ends.tolist() + [size + 1] * behind,
        [True] * before + found.exact.tolist() + [True] * behind,
        before,
    )


def tokens_of(sides: list[Side]) -> Tokens:
    return Tokens(
        np.cumsum([0, *(len(one.ids) for one in sides)]),
        np.array([one.prefix for one in sides]),
        np.zeros(len(sides), np.int64),
        np.array([end for one in sides for end in one.ends], np.int64),
        np.array([exact for one in sides for exact in one.exact], np.bool_),
    )


def by_loop(student: Side, teacher: Side, predicted: list[bool]) -> list[tuple[int, int, int, int]]:
    """First and last token of each chunk, of the student and of the teacher."""

    def places(one: Side) -> dict[int, int]:
        found = {0: one.prefix}
        for index in range(one.prefix, len(one.ids)):
            if one.exact[index]:
                found[one.ends[index]] = index + 1  # of tokens that end together the last
        return found

    ours, theirs = places(student), places(teacher)
    chunks = []
    for a, b in pairwise(sorted(ours.keys() & theirs.keys())):
        said = all(predicted[theirs[a] : theirs[b]]) and ours[a] > 0 and theirs[a] > 0
        if said:
            chunks.append((ours[a], ours[b], theirs[a], theirs[b]))
    return chunks


def aligned(student: Any, teacher: Any, texts: list[str]) -> tuple[Alignment, list[Any]]:
    ours, theirs = [side(student, text) for text in texts], [side(teacher, text) for text in texts]
    predicted = [[index > 0 for index in range(len(one.ids))] for one in theirs]
    flat = np.array([flag for one in predicted for flag in one], np.bool_)
    ends = np.array([len(text.encode()) for text in texts], np.int64)
    found = align(tokens_of(ours), tokens_of(theirs), flat, ends)
    expected = [
        (row, *chunk)
        for row, parts in enumerate(zip(ours, theirs, predicted, strict=True))
        for chunk in by_loop(*parts)
    ]
    return found, expected


PAIRS = {
    "coarse and fine": (byte_level(400), byte_level(280)),
    "down to bytes": (byte_level(258), byte_level(400)),
    "from bytes": (byte_level(400), byte_level(258)),
    "begins": (byte_level(300, bos=True), byte_level(380)),
    "ends": (byte_level(300), byte_level(380, bos=True, eos=True)),
    "both end": (byte_level(300, eos=True), byte_level(380, bos=True, eos=True)),
    "sentence piece": (byte_level(330, bos=True), sentence_piece(340, bos=True)),
    "lower case": (word_piece(), byte_level(330, bos=True)),
    "adds a space": (byte_level(300, space=True), byte_level(340)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_chunks_are_those_of_a_loop_over_places(name: str) -> None:
    student, teacher = PAIRS[name]
    rng = np.random.default_rng(1)
    texts = [*SENTENCES, *("".join(rng.choice(LETTERS, size)) for size in rng.integers(1, 40, 60))]
    found, expected = aligned(student, teacher, texts)
    ours = np.cumsum([0, *(len(side(student, text).ids) for text in texts)])
    theirs = np.cumsum([0, *(len(side(teacher, text).ids) for text in texts)])
    positions = theirs - np.arange(len(theirs))  # a row's first token has no position
    rows = np.searchsorted(found.offsets, found.begins, side="right") - 1
    got = [
        (
            row,
            found.tokens[first] - ours[row],
            found.tokens[last - 1] - ours[row] + 1,
            a - positions[row] + 1,
            b - positions[row] + 1,
        )
        for row, first, last, a, b in zip(
            rows, found.begins, found.ends, found.teacher_begins, found.teacher_ends, strict=True
        )
    ]
    assert got == expected
    assert len(got) > 60


@pytest.mark.parametrize(
    "tokenizer", [byte_level(300), byte_level(300, bos=True), byte_level(300, bos=True, eos=True)]
)
def test_with_equal_tokenizers_every_token_is_a_chunk(tokenizer: Any) -> None:
    found, _ = aligned(tokenizer, tokenizer, SENTENCES)
    number = sum(len(tokenizer(text)["input_ids"]) - 1 for text in SENTENCES)
    assert found.begins.tolist() == found.teacher_begins.tolist() == list(range(number))
    assert found.ends.tolist() == found.teacher_ends.tolist() == list(range(1, number + 1))
    assert len(found.tokens) == number


def test_each_sides_first_token_counts_only_where_both_have_something_before_it() -> None:
    text, fine, coarse = ["the cat sat"], byte_level(258), byte_level(400)
    for ours, theirs, whole in (
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (True, True, True),
    ):
        student, teacher = byte_level(400, bos=ours), byte_level(258, bos=theirs)
        found, _ = aligned(student, teacher, text)
        assert (int(found.num_bytes.sum()) == len(text[0])) is whole
    assert len(fine(text[0])["input_ids"]) > len(coarse(text[0])["input_ids"])


def test_an_end_is_a_chunk_where_both_say_it_and_no_byte() -> None:
    with_end, _ = aligned(
        byte_level(300, bos=True, eos=True), byte_level(400, bos=True, eos=True), ["the cat"]
    )
    without, _ = aligned(byte_level(300, bos=True), byte_level(400, bos=True, eos=True), ["the cat"])
    assert len(with_end.begins) == len(without.begins) + 1
    assert int(with_end.num_bytes.sum()) == int(without.num_bytes.sum()) == 7
    assert int(with_end.num_bytes[-1]) == 0


def test_what_the_teacher_was_not_asked_is_not_predicted() -> None:
    """Positions on an answer alone: a token that overlaps it is the answer's."""
    text = "question? answer."
    teacher, student = side(byte_level(400, bos=True), text), side(byte_level(270, bos=True), text)
    begin = len("question?")
    predicted = np.array([end > begin for end in teacher.ends], np.bool_)
    found = align(tokens_of([student]), tokens_of([teacher]), predicted, np.array([len(text)]))
    ends = np.array(student.ends)[found.tokens]
    assert (ends > begin).all()
    assert int(found.num_bytes.sum()) == len(text) - begin
