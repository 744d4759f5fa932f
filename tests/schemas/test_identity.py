"""Hashes that name things. The constants are golden: a change of any of them orphans every cache."""

import itertools

import numpy as np
import pytest

from schemas.identity import (
    canonical_json,
    digest,
    document_hash,
    example_id,
    is_held_out,
    unit_name,
    unit_number,
)

DOCUMENT = document_hash({"text": "The teacher runs once."})
EXAMPLE = example_id(DOCUMENT, window_index=3, tokenised_how=bytes(16))


def test_golden_hashes():
    assert (
        canonical_json({"b": [1, 2.5, None, True], "a": "\u00e9\n\u6c34"})
        == '{"a":"\u00e9\\n\u6c34","b":[1,2.5,null,true]}'.encode()
    )
    assert DOCUMENT.hex() == "ef5e69d6af5af1b07754f5120df88fe3"
    assert document_hash({"text": "x"}, key="7", label=1).hex() == "11bb1168b087b41de55cf10d5ac9210a"
    assert document_hash({"text": "x"}, label=[0.0, 1.0]).hex() == "f3367145523d70c67eac996a61f320ef"
    assert EXAMPLE.hex() == "c18c8d41c4c044a8a507ca03af68a118"
    assert unit_name([EXAMPLE, bytes(16)], "spec") == "ee2fef1a1461115695171103959e3518"


def test_everything_that_decides_is_in_the_hash():
    variants = [
        document_hash({"text": "x"}),
        document_hash({"text": "y"}),
        document_hash({"text": "x"}, key="1"),
        document_hash({"text": "x"}, label=1),
        document_hash({"text": "x"}, label=1.0),
        document_hash({"text": "x", "text_pair": ""}),
        document_hash({"messages": [{"role": "user", "content": "x"}]}),
        *(
            example_id(DOCUMENT, window_index=n, tokenised_how=how)
            for n in (0, 1, 256)
            for how in (b"a", b"b")
        ),
        digest(b"x", "document"),
        digest(b"x", "example"),
    ]
    assert len(set(variants)) == len(variants)
    assert all(len(value) == 16 for value in variants)


@pytest.mark.parametrize("label", [None, 0, -3, 2**70, True, 1.5, [0.0, 1.0], [0, 3, 1, 2, 2, 1]])
@pytest.mark.parametrize("key", ["", "7", 'a "key"\\'])
@pytest.mark.parametrize("text", ["", "x", '"\\/\b\f\n\r\t\0\x1f\x7f', "\u2028\u6c34\U0001f600", "\ud800"])
def test_a_document_is_hashed_by_its_canonical_json(label, key, text):
    for content in ({"text": text}, {"text_pair": "b", "text": text}, {"messages": [{"content": text}]}):
        known = digest(canonical_json([key, content, label]), "document")
        assert document_hash(content, key=key, label=label) == known


def test_order_of_keys_and_of_ids_is_nothing():
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    ids = [bytes([n]) * 16 for n in range(9)]
    assert unit_name(ids, "s") == unit_name(reversed(ids), "s")
    assert unit_name(ids, "s") != unit_name(ids, "t")
    assert unit_name(ids, "s") != unit_name(ids[1:], "s")


def test_no_number_is_not_a_number():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_units_are_equal_shares_of_id_space(rng):
    ids = [rng.bytes(16) for _ in range(20_000)]
    numbers = np.array([unit_number(one, 7) for one in ids])
    assert numbers.min() == 0
    assert numbers.max() == 6
    assert np.abs(np.bincount(numbers) / 20_000 - 1 / 7).max() < 0.01
    assert unit_number(b"\xff" * 16, 7) == 6
    assert {unit_number(one, 1) for one in ids} == {0}


def test_held_out_part_grows_with_the_fraction(rng):
    documents = [document_hash({"text": str(n)}) for n in range(5_000)]
    parts = [{d for d in documents if is_held_out(d, f)} for f in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assert all(a <= b for a, b in itertools.pairwise(parts))
    assert [len(part) / 5_000 for part in parts] == pytest.approx([0, 0.01, 0.1, 0.5, 1], abs=0.02)
    assert parts[0] == set()
    assert parts[-1] == set(documents)


def test_held_out_is_not_the_order_of_units():
    """The split reads other bytes than the units do, so a unit is no side of it."""
    document = bytes(8) + b"\xff" * 8
    assert unit_number(document, 100) == 0
    assert not is_held_out(document, 0.99)
