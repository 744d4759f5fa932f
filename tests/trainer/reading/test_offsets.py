"""Where tokens end, in bytes: of every make of tokenizer, against what the tokens themselves decode to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from schemas.errors import StudentError
from schemas.token_bytes import byte_tokens, check_fast, edge_ids, token_strings
from tests.trainer.reading.tokenizers import SENTENCES, byte_level, sentence_piece, word_piece
from trainer.reading.offsets import Encoder


@pytest.mark.parametrize("size", [258, 300, 400])
@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("text", [*SENTENCES, "", " ", "🤗", "a literal </s> inside", "x" * 50])
def test_of_byte_level_tokens_every_end_is_known_also_within_a_character(
    size: int, space: bool, text: str
) -> None:
    tokenizer = byte_level(size, space=space)
    encoder = Encoder(tokenizer)
    (found,) = encoder.encode([text])
    assert found.exact.all()
    whole = (" " if space and text and not text.startswith(" ") else "") + text
    shift = len(whole) - len(text)
    assert encoder.bytes is not None
    read = b""
    for index, end in zip(found.ids.tolist(), found.ends.tolist(), strict=True):
        read += encoder.bytes[index]
        assert end == max(0, len(read) - shift)
    assert read == whole.encode()
    assert tokenizer.decode(found.ids) == whole


@pytest.mark.parametrize("text", [*SENTENCES, "é is one letter of two bytes", "漢"])
def test_bytes_that_sentence_piece_writes_one_by_one_end_one_by_one(text: str) -> None:
    tokenizer = sentence_piece(330)
    (found,) = Encoder(tokenizer).encode([text])
    strings = token_strings(tokenizer)
    assert strings is not None
    read = b""
    for index, end, exact in zip(found.ids.tolist(), found.ends.tolist(), found.exact.tolist(), strict=True):
        read += strings[index][0]
        if read == b" ":
            assert (
                not exact
            )  # a bar that was put before the text: by its characters it ends where the next token does
            continue
        assert exact
        assert end == len(read) - 1  # a space stands before the text
    assert read == b" " + text.encode()


def test_characters_that_unknown_tokens_share_are_no_place() -> None:
    """Two tokens of one character of three bytes, neither of which is known to be some of them."""
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "k": 1, "g": 2}, unk_token="<unk>"))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    (found,) = Encoder(tokenizer).encode(["k㎏g"])
    assert found.ids.tolist() == [1, 1, 2, 2]  # NFKC makes two letters of one
    assert found.ends.tolist() == [1, 4, 4, 5]
    assert found.exact.tolist() == [True, False, True, True]


def test_tokens_of_a_lower_cased_text_end_where_the_original_has_them() -> None:
    text = "The CAT sat, naïve Straße"
    tokenizer = word_piece()
    encoder = Encoder(tokenizer)
    (found,) = encoder.encode([text])
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert found.ends.tolist() == [len(text[:stop].encode()) for _, stop in places]
    assert encoder.bytes is None
    assert edge_ids(tokenizer) == ((2,), (3,))
    assert token_strings(tokenizer) is None


def test_a_byte_level_tokenizer_that_normalises_goes_by_characters() -> None:
    tokenizer = byte_level(258)
    raw = tokenizer.backend_tokenizer
    raw.normalizer = normalizers.NFC()
    text = "cafe\u0301 cat"  # e and an accent, which NFC joins
    (found,) = Encoder(tokenizer).encode([text])
    assert int(found.ends[-1]) == len(text.encode())
    assert not found.exact.all()  # the joined letter's two bytes are not the text's three
    (plain,) = Encoder(tokenizer).encode(["café cat"])
    assert plain.exact.all()


def test_ends_never_fall_and_never_leave_the_text() -> None:
    rng = np.random.default_rng(0)
    letters = list("ab é🤗漢\n\t,.ßﬁ")
    for tokenizer in (byte_level(300), byte_level(280, space=True), sentence_piece(320), word_piece()):
        texts = ["".join(rng.choice(letters, size)) for size in rng.integers(0, 30, 50)]
        for text, found in zip(texts, Encoder(tokenizer).encode(texts), strict=True):
            assert (np.diff(found.ends) >= 0).all()
            assert not len(found.ends) or (found.ends[0] >= 0 and found.ends[-1] <= len(text.encode()))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(StudentError, match=r"does not tell which characters.*fast tokenizer"):
        check_fast(slow, "here")


def test_only_byte_level_vocabularies_are_bytes() -> None:
    assert byte_tokens(word_piece()) is None
    assert byte_tokens(sentence_piece(320)) is None
    found = byte_tokens(byte_level(258))
    assert found is not None
    assert sorted(found[2:]) == [bytes([byte]) for byte in range(256)]
    assert found[:2] == [b"<s>", b"</s>"]


def test_a_special_token_in_a_text_is_spelt_and_ends_nothing() -> None:
    """Where a corpus's author wrote it, and the teacher has read letters."""
    tokenizer = byte_level(300, eos=True)
    name = tokenizer.eos_token
    assert tokenizer.eos_token_id in tokenizer(f"a {name} b")["input_ids"][:-1]
    (found,) = Encoder(tokenizer, spells=True).encode([f"a {name} b"])
    assert tokenizer.eos_token_id not in found.ids.tolist()
    assert tokenizer.decode(found.ids.tolist()) == f"a {name} b"
