"""What a record says, or why it is rejected: one reason for each fault, and never the text."""

import json
import re

import pytest

from pipelines.config import CorpusConfig
from pipelines.corpus.documents import Source, is_blank, parse, record_id
from pipelines.corpus.labels import LabelMap
from pipelines.corpus.lines import LongLine, Record
from pipelines.rejects import RejectedError

CLASSES = LabelMap({"no": 0, "yes": 1, "2": 2}, 3, "softmax")
MANY = LabelMap({"no": 0, "yes": 1, "2": 2}, 3, "sigmoid")
VALUES = LabelMap({}, 2, "identity")
WITH_LABEL = {"label_field": "label"}
WITH_ID = {"id_field": "id"}
MESSAGES = {"messages_field": "messages"}
PROMPT = {"prompt_field": "prompt", "completion_field": "completion"}
PAIR = {"text_pair_field": "pair"}


def parsed(value, *, kind="jsonl", labels=None, **fields):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    corpus = CorpusConfig(files=("c.jsonl",), **fields)
    return parse(Record(7, raw), Source("c.jsonl", 7), corpus, labels, kind)


def reason(value, **fields):
    with pytest.raises(RejectedError) as caught:
        parsed(value, **fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "fields", "expected"),
    [
        (b"{", {}, "not_json"),
        (b"[1]", {}, "not_json"),
        (b'"text"', {}, "not_json"),
        (b"[" * 200_000, {}, "not_json"),
        (b'{"text": ' + b"9" * 5000 + b"}", {}, "not_json"),
        (b'{"text": "\xff"}', {}, "invalid_utf8"),
        (b'{"text": "\\ud800"}', {}, "invalid_utf8"),
        ({"no": "x"}, {}, "field_missing"),
        ({"text": None}, {}, "field_missing"),
        ({"text": 1}, {}, "not_a_string"),
        ({"text": ["x"]}, {}, "not_a_string"),
        ({"text": ""}, {}, "empty"),
        ({"text": " \n\u3000"}, {}, "empty"),
        ({"text": "abcd"}, {"max_document_chars": 3}, "too_long"),
        ({"text": "ab", "pair": "cd"}, PAIR | {"max_document_chars": 3}, "too_long"),
        ({"text": "ab"}, PAIR, "field_missing"),
        ({"text": "ab", "pair": " "}, PAIR, "empty"),
        ({"prompt": "ab"}, PROMPT, "field_missing"),
        ({"prompt": "ab", "completion": 3}, PROMPT, "not_a_string"),
        ({"messages": "hi"}, MESSAGES, "not_a_string"),
        ({"messages": ["hi"]}, MESSAGES, "not_a_string"),
        ({"messages": []}, MESSAGES, "empty"),
        ({"messages": [{"role": "user"}]}, MESSAGES, "field_missing"),
        ({"messages": [{"role": "user", "content": " "}]}, MESSAGES, "empty"),
        ({"text": "ab"}, WITH_ID, "field_missing"),
        ({"text": "ab", "id": 1.5}, WITH_ID, "not_a_string"),
        ({"text": "ab", "id": True}, WITH_ID, "not_a_string"),
        ({"text": "ab", "id": " "}, WITH_ID, "empty"),
        (b'{"text": "ab", "id": "\\udc00"}', WITH_ID, "invalid_utf8"),
        (b'{"text": "ab", "text": "cd"}', {}, "repeated_field"),
        (b'{"text": "ab", "id": 1, "id": 2}', WITH_ID, "repeated_field"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', MESSAGES, "repeated_field"),
        (b'{"messages": [{"role": "user", "content": "a", "x": NaN}]}', MESSAGES, "bad_field"),
        (b'{"messages": [{"role": "user", "content": "a", "x": "\\ud800"}]}', MESSAGES, "invalid_utf8"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, MESSAGES, "bad_messages"),
        ({"messages": [{"role": "user", "content": []}]}, MESSAGES, "empty"),
        ({"messages": [{"role": "user", "content": None, "tool_calls": []}]}, MESSAGES, "field_missing"),
        ({"messages": [{"role": "user", "content": 3}]}, MESSAGES, "not_a_string"),
        ({"messages": [{"from": "human", "value": "a"}]}, MESSAGES, "field_missing"),
    ],
)
def test_each_fault_has_its_reason(value, fields, expected):
    assert reason(value, **fields) == expected


@pytest.mark.parametrize(
    ("labels", "good", "bad"),
    [
        (CLASSES, [0, 2, "yes", "2"], [3, -1, "maybe", "1", 1.0, True, [1], {"a": 1}, 10**400]),
        (MANY, [[], [0, "yes"], [2, 1]], ["yes", 1, [3], ["maybe"], [[0]], [True], [2, 2]]),
        (VALUES, [[0, 1.5]], [1.5, [1.5], ["a", "b"], [1, True], [1, None], [1, float("nan")], [1, 10**400]]),
    ],
)
def test_a_label_outside_the_label_map_is_rejected(labels, good, bad):
    for label in good:
        assert parsed({"text": "ab", "label": label}, labels=labels, **WITH_LABEL).label is not None
    for label in bad:
        assert reason({"text": "ab", "label": label}, labels=labels, **WITH_LABEL) == "unknown_label"
    assert reason({"text": "ab"}, labels=labels, **WITH_LABEL) == "field_missing"


def test_labels_by_name_and_by_number_are_one_document():
    by_name = parsed({"text": "ab", "label": "yes"}, labels=CLASSES, **WITH_LABEL)
    by_number = parsed({"text": "ab", "label": 1}, labels=CLASSES, **WITH_LABEL)
    assert by_name.label == by_number.label == 1
    assert by_name.hash == by_number.hash
    several = parsed({"text": "ab", "label": ["yes", 2]}, labels=MANY, **WITH_LABEL)
    assert several.label == (0.0, 1.0, 1.0)


def test_a_name_that_stands_twice_where_nobody_reads_it_does_no_harm():
    assert parsed(b'{"text": "ab", "other": 1, "other": 2, "deep": {"a": 1, "a": 2}}').text == "ab"


def test_a_reject_names_the_field_and_what_was_expected_and_never_the_value():
    with pytest.raises(RejectedError) as caught:
        parsed(
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 77123}]}, **MESSAGES
        )
    assert caught.value.told() == "field messages[1].content, expected a string, got a whole number"


def test_a_line_beyond_the_limit_is_a_reject_that_tells_both_lengths():
    with pytest.raises(RejectedError) as caught:
        parse(
            Record(0, LongLine(99)),
            Source("c", 0),
            CorpusConfig(files=("c",), max_line_bytes=9),
            None,
            "jsonl",
        )
    assert (str(caught.value), caught.value.got) == ("line_too_long", "99 bytes")
    assert "9 bytes a line (--max_line_bytes)" in caught.value.expected


def test_content_id_and_label_decide_the_hash_and_nothing_else_does():
    base = parsed({"text": "ab"})
    assert parsed({"text": "ab", "other": 1}).hash == base.hash
    others = [
        parsed({"text": "ab "}),
        parsed({"text": "ab", "id": 1}, **WITH_ID),
        parsed({"text": "ab", "pair": "c"}, **PAIR),
        parsed({"text": "ab", "label": 0}, labels=CLASSES, **WITH_LABEL),
        parsed({"text": "ab", "label": 1}, labels=CLASSES, **WITH_LABEL),
        parsed({"prompt": "a", "completion": "b"}, **PROMPT),
    ]
    assert len({document.hash for document in [base, *others]}) == 1 + len(others)
    assert parsed({"text": "ab", "id": 7}, **WITH_ID).key == parsed({"text": "ab", "id": "7"}, **WITH_ID).key


def test_a_text_line_is_a_document_without_its_carriage_return():
    assert parsed(b'{"text": 1}\r', kind="text").text == '{"text": 1}'
    assert reason(b"\xff", kind="text") == "invalid_utf8"


def test_a_line_of_white_space_separates_and_is_no_document():
    assert is_blank(Record(0, b" \t\r"))
    assert not is_blank(Record(0, b"x"))
    assert not is_blank(Record(0, {}))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"id": 5}', "5"),
        (b'{"id": "a"}', "a"),
        (b'{"id": "\\ud800"}', None),
        (b'{"id": {"secret": "text"}}', None),
        (b'{"id": null}', None),
        (b'{"x": 5}', None),
        (b"[5]", None),
        (b"\xff", None),
        (b"[" * 200_000, None),
        ({"id": 5}, "5"),
    ],
)
def test_a_broken_record_still_tells_its_id_if_it_has_one(raw, expected):
    assert record_id(Record(0, raw), CorpusConfig(files=("c.jsonl",), id_field="id")) == expected
    assert record_id(Record(0, raw), CorpusConfig(files=("c.jsonl",))) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("files", ()), ("max_document_chars", 0), ("completion_field", "c")],
)
def test_a_corpus_that_makes_no_sense_is_refused_with_its_value(field, value):
    with pytest.raises(ValueError, match=re.escape(repr(value))):
        CorpusConfig(**{"files": ("c.jsonl",), field: value})
    with pytest.raises(ValueError, match="messages_field"):
        CorpusConfig(files=("c",), messages_field="m", text_pair_field="p")
