"""The map between vocabularies: the identity for equal ones, else by strings, as in a plain search."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.errors import StudentError
from schemas.token_bytes import token_strings
from tests.trainer.reading.tokenizers import byte_level, sentence_piece, word_piece
from trainer.reading.projection import by_strings, projection


def plain(*tokens: str) -> list[tuple[bytes, str]]:
    return [(token.encode(), "") for token in tokens]


def test_with_equal_tokenizers_it_is_the_identity() -> None:
    for tokenizer in (byte_level(300), byte_level(400, bos=True), sentence_piece(330)):
        found = projection(tokenizer, tokenizer, len(tokenizer))
        assert found.lengths.tolist() == [1] * len(tokenizer)
        assert found.values.tolist() == list(range(len(tokenizer)))


def test_a_students_token_stands_for_the_longest_that_it_begins_with() -> None:
    teacher = plain("a", "b", "ab", "abc")
    found = by_strings(plain("a", "abcd", "abd", "b", "ba"), teacher, 4)
    assert [found.row(index).tolist() for index in range(4)] == [[0], [3, 4], [2], [1]]


def test_a_teachers_token_that_none_stands_for_begins_with_one() -> None:
    """'201' in a vocabulary of digits: the student's '2' is what goes on as '201' does."""
    found = by_strings(plain("2", "0", "1"), plain("2", "0", "1", "201", "20", "3"), 7)
    assert [found.row(index).tolist() for index in range(7)] == [[0], [1], [2], [0], [0], [], []]


def test_special_tokens_agree_by_what_they_do_and_never_with_text() -> None:
    teacher = [(b"<|end|>", "special eos"), (b"<", ""), (b"<|x|>", "special <|x|>")]
    student = [(b"</s>", "special eos"), (b"<", ""), (b"<s>", "special bos")]
    found = by_strings(student, teacher, 3)
    assert [found.row(index).tolist() for index in range(3)] == [[0], [1], []]


@pytest.mark.parametrize("sizes", [(400, 280), (280, 400)])
def test_it_is_what_a_plain_search_finds(sizes: tuple[int, int]) -> None:
    student, teacher = (byte_level(size) for size in sizes)
    found = projection(student, teacher, len(teacher))
    ours, theirs = token_strings(student), token_strings(teacher)
    assert ours is not None
    assert theirs is not None

    def longest(string: tuple[bytes, str], among: list[tuple[bytes, str]]) -> int:
        if string[1]:
            return among.index(string)
        fits = [
            index for index, (value, kind) in enumerate(among) if not kind and string[0].startswith(value)
        ]
        return max(fits, key=lambda index: len(among[index][0]))

    expected: dict[int, set[int]] = {index: set() for index in range(len(teacher))}
    for s, string in enumerate(ours):
        expected[longest(string, theirs)].add(s)
    for i, string in enumerate(theirs):
        expected[i] = expected[i] or {longest(string, ours)}
    assert {i: set(found.row(i).tolist()) for i in range(len(teacher))} == expected
    assert (np.diff(found.offsets) > 0).all()


def test_spaces_and_bytes_of_sentence_piece_are_those_of_bytes() -> None:
    student, teacher = byte_level(400), sentence_piece(420)
    found = projection(student, teacher, len(teacher))
    bar = teacher.convert_tokens_to_ids("\u2581th")
    both = [student.convert_tokens_to_ids(token) for token in ("Ġth", "Ġthe")]
    assert set(both) & set(found.row(bar).tolist())
    byte = teacher.convert_tokens_to_ids("<0xF0>")
    assert student.convert_tokens_to_ids("ð") in found.row(byte).tolist()


def test_word_pieces_are_refused_with_another_loss() -> None:
    with pytest.raises(StudentError, match=r"the student's do not say.*Use --losses alm=1.0"):
        projection(word_piece(), byte_level(300), 300)
    with pytest.raises(StudentError, match=r"the teacher's do not say.*Use --losses alm=1.0"):
        projection(byte_level(300), word_piece(), 150)
